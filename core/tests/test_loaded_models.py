"""Models that somebody has loaded, in whatever way: fastllm writes what their own `generate` does, and changes nothing.

Adapters of PEFT, quantised weights and vocabularies have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fastllm_core import load
from fastllm_core.attention import FEW_ROWS
from fastllm_core.errors import ModelError, UnsupportedModel
from fastllm_core.models import load_model
from fastllm_core.network import Network
from fastllm_core.probe import check_whole
from fastllm_core.testing import tiny_model
from fastllm_core.testing.loaded import check_loaded, generated

accelerate = pytest.importorskip("accelerate")
LAYERS = 3


def model(**settings: Any) -> PreTrainedModel:
    return tiny_model(num_hidden_layers=LAYERS, **settings)


# -- number formats and modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_float64_and_the_heads(tied: bool) -> None:
    check_loaded(model(tie_word_embeddings=tied).double())


def test_half_precision_keeps_its_dtype() -> None:
    """Rounding may part texts, the port may not: its logits are those of the model itself to rounding."""
    given = model().half()
    network = Network(load_model(given))
    check_whole(network)
    assert network.dtype is torch.float16
    assert load(given, "plain").generate([1, 2, 3], max_new_tokens=4).finish_reason == "length"


def test_a_model_in_training() -> None:
    """Dropout, checkpointing and a hook that asks for gradients are for training, and stay switched on for it."""
    given = model(attention_dropout=0.5)
    wanted = generated(given)
    given.train()
    enable = getattr(given, "activation_checkpointing_enable", None)  # its name since transformers 5.24
    (enable or given.gradient_checkpointing_enable)()
    given.enable_input_require_grads()
    given.config.use_cache = False
    check_loaded(given, wanted)


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_that_takes_masks(kind: str) -> None:
    given = model()
    given.set_attn_implementation(kind)
    check_loaded(given)
    network = Network(load_model(given))
    assert network.model.config._attn_implementation == ("eager" if kind == "eager" else FEW_ROWS)
    assert network.replaced_attention is None


def blind(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Causal whatever the mask says, as a kernel without masks is."""
    return sdpa_attention_forward(module, query, key, value, None, **{**more, "is_causal": query.shape[2] > 1})


def softer(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Another function than scaled dot-product attention."""
    return blind(module, query / 2, key, value, None, **more)


def attended(attention: Callable[..., Any]) -> PreTrainedModel:
    name = f"test_{attention.__name__}"
    AttentionInterface.register(name, attention)
    given = model()
    given.set_attn_implementation(name)
    return given


def test_a_kernel_that_ignores_masks_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    check_loaded(attended(blind))
    assert "its attention 'test_blind' may ignore the masks" in caplog.text


def test_an_attention_of_its_own_kind_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="an explicit mask in its attention 'test_softer', nor sdpa in its pl"):
        load(attended(softer), "plain")


def test_transformers_own_kernels_are_replaced() -> None:
    given = model()
    given.config._attn_implementation = "flash_attention_2"  # which this machine could not even run
    network = Network(load_model(given))
    check_whole(network)
    assert network.replaced_attention == given.config._attn_implementation == "flash_attention_2"


# -- torch.compile -----------------------------------------------------------------------------------------------------


def compiled_layers() -> PreTrainedModel:
    given: Any = model()
    for index, layer in enumerate(given.model.layers):
        given.model.layers[index] = torch.compile(layer, backend="eager")
    given.lm_head = torch.compile(given.lm_head, backend="eager")
    return given


def compiled_forward() -> PreTrainedModel:
    given: Any = model()
    given.forward = torch.compile(given.forward, backend="eager")
    for module in (given.model.layers[1], given.lm_head):
        module.forward = torch.compile(module.forward, backend="eager")
    return given


def compiled_in_place() -> PreTrainedModel:
    given: Any = model()
    given.compile(backend="eager")
    for module in (given.model.layers[1], given.lm_head):
        module.compile(backend="eager")
    return given


@pytest.mark.parametrize(
    "make", [lambda: torch.compile(model(), backend="eager"), compiled_layers, compiled_forward, compiled_in_place]
)
def test_what_torch_compile_makes(make: Callable[[], Any]) -> None:
    """Uncompiled, it is the same model: no forward of fastllm may run the original, which knows no skips and parts."""
    check_loaded(make(), generated(model()))  # generating with the compiled model would compile for seconds


# -- accelerate --------------------------------------------------------------------------------------------------------


def on_disk(folder: Path, **settings: Any) -> PreTrainedModel:
    model(**settings).save_pretrained(folder / "model")
    places = {f"model.layers.{index}": "disk" if index else "cpu" for index in range(LAYERS)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=places, offload_folder=folder / "off", dtype="auto"
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_layers_that_lie_on_the_disk(tied: bool, tmp_path: Path) -> None:
    given = on_disk(tmp_path, tie_word_embeddings=tied)
    assert {parameter.device.type for parameter in given.parameters()} == {"cpu", "meta"}
    check_loaded(given, generated(model(tie_word_embeddings=tied)))


def test_hooks_on_every_module() -> None:
    check_loaded(accelerate.dispatch_model(model(), {"": "cpu"}, force_hooks=True))


@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on a device type different")
def test_weights_that_are_fetched_for_each_forward() -> None:
    check_loaded(accelerate.cpu_offload(model(), torch.device("cpu")))


def test_a_device_map_without_hooks(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    check_loaded(AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}))


# -- refused -----------------------------------------------------------------------------------------------------------


def foreign_forward() -> PreTrainedModel:
    given: Any = model()
    whole = given.model.layers[1].forward
    given.model.layers[1].forward = lambda *arguments, **keywords: whole(*arguments, **keywords)
    return given


def quantised_by_outliers() -> PreTrainedModel:
    given = model()
    given.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    return given


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.DataParallel(model()), "a DataParallel feeds replicas; give the model inside, its .module"),
        (lambda: model().to("meta"), "its weights lie on meta; fastllm needs them on one device"),
        (lambda: model().model, "a LlamaModel has no language-model head; load it with AutoModelForCausalLM"),
        (lambda: nn.Linear(2, 2), "expected a name, a folder or a transformers causal LM, not Linear"),
        (foreign_forward, "forward of a LlamaDecoderLayer was replaced by foreign_forward.<locals>.<lambda>, which"),
        (quantised_by_outliers, r"is quantised by LLM\.int8\(\), .*logits depend on later ones"),
    ],
)
def test_refused_in_a_sentence(make: Callable[[], Any], words: str) -> None:
    with pytest.raises((ModelError, UnsupportedModel), match=words) as caught:
        load(make(), "plain")
    assert "\n" not in str(caught.value)


def test_a_forward_that_is_bound_to_its_module() -> None:
    """The way to replace a forward that a copy can follow."""

    def louder(self: Any, hidden_states: Tensor) -> Any:
        return type(self).forward(self, hidden_states) * 3

    given: Any = model()
    given.model.layers[1].mlp.forward = MethodType(louder, given.model.layers[1].mlp)
    assert generated(given) != generated(model())
    check_loaded(given)
