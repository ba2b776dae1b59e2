"""Models with PEFT's adapters: what is active when the model is given counts, wherever PEFT put it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from fastllm_core import load
from fastllm_core.errors import UnsupportedModel
from fastllm_core.testing import tiny_model
from fastllm_core.testing.loaded import NEW, PROMPTS, check_loaded, generated

peft = pytest.importorskip("peft")
# PEFT 0.21 asks transformers 5.24 by a name that will go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}


def model() -> PreTrainedModel:
    return tiny_model(num_hidden_layers=3)


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(task_type="CAUSAL_LM", **{**LORA, **settings})


def adapted(config: Any = None, **more: Any) -> Any:
    """A PeftModel with adapters of random weights, the first of them active."""
    torch.manual_seed(1)
    given = peft.get_peft_model(model(), config or lora())
    for name, other in more.items():
        given.add_adapter(name, other)
    return given.eval()


def test_lora() -> None:
    given = adapted()
    assert generated(given) != generated(model())
    check_loaded(given)
    check_loaded(given.base_model.model)  # what the wrapper holds


def test_dropout_of_an_adapter_in_training() -> None:
    given = adapted(lora(lora_dropout=0.5))
    wanted = generated(given)
    check_loaded(given.train(), wanted)


@pytest.mark.parametrize(
    "config",
    [
        lora(target_modules=["embed_tokens", "lm_head", "o_proj"], r=8),
        lora(target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True),
        lora(target_modules=["q_proj"], trainable_token_indices=[7, 9]),
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
    ],
    ids=["embedding and head", "dora and a copied head", "trained tokens", "ia3"],
)
def test_other_adapters_and_places(config: Any) -> None:
    check_loaded(adapted(config))


def test_several_adapters() -> None:
    given = adapted(other=lora(target_modules=["k_proj", "up_proj"]))
    texts = {}
    for active in ("default", "other", ["default", "other"]):
        given.base_model.set_adapter(active)
        texts[str(active)] = generated(given)
        check_loaded(given)
    assert len({str(text) for text in texts.values()}) == 3


def test_the_adapters_of_the_moment_count() -> None:
    """What the user switches afterwards is theirs: the pipeline keeps what it was given."""
    given = adapted(other=lora(target_modules=["k_proj", "up_proj"]))
    first = generated(given)
    with given.disable_adapter():
        assert generated(given) == generated(model())
        check_loaded(given)
    with load(given, "plain") as pipeline:
        given.set_adapter("other")
        texts = [list(text.token_ids) for text in pipeline.generate(PROMPTS, max_new_tokens=NEW)]
    assert texts == first != generated(given)


def test_merged() -> None:
    given = adapted()
    given.merge_adapter()
    check_loaded(given)
    given.unmerge_adapter()
    check_loaded(given.merge_and_unload())


def test_mixed_adapters() -> None:
    given = peft.get_peft_model(model(), lora(), mixed=True)
    given.add_adapter("hada", peft.LoHaConfig(target_modules=["k_proj"], r=2, init_weights=False))
    given.set_adapter(["default", "hada"])
    check_loaded(given.eval(), generated(given.base_model.model))


def test_adapters_without_a_wrapper() -> None:
    given = peft.inject_adapter_in_model(lora(), model())
    check_loaded(given.eval())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")  # PEFT's warning to transformers
def test_adapters_by_way_of_transformers(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    given = model()
    try:
        given.load_adapter(str(tmp_path))
        given.add_adapter(lora(target_modules=["up_proj"]), "second")
    except ValueError as error:
        if "The version of PEFT" not in str(error):
            raise
        pytest.skip(str(error))  # transformers 5.24 asks for a release of PEFT that is to come
    given.eval()
    for active in ("default", "second", ["default", "second"]):
        given.set_adapter(active)
        check_loaded(given)
    given.disable_adapters()
    check_loaded(given, generated(model()))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), r"'default' \(PROMPT_TUNING\) acts on"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), r"'default' \(PREFIX_TUNING\) acts on"),
        (lora(alora_invocation_tokens=[3, 41]), r"'default' \(LORA\) acts on the prompt"),
    ],
    ids=["prompt tuning", "prefix tuning", "activated lora"],
)
def test_adapters_outside_of_the_layers_are_refused(config: Any, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words) as caught:
        load(adapted(config), "plain")
    assert "merge_and_unload()" in str(caught.value)
