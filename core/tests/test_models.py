"""Resolving, loading and refusing models; comparing vocabularies."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, MambaConfig, PreTrainedTokenizerFast, T5Config

from fastllm_core.errors import ModelError, PluginContractError, UnsupportedModel
from fastllm_core.generation_defaults import GenerationDefaults
from fastllm_core.models import LoadedModel, load_model, registered_model, resolve_model, verify_same_vocabulary
from fastllm_core.request import SamplingParams
from fastllm_core.testing.families import family

if TYPE_CHECKING:
    from conftest import FakeSite

WORDS = ("<s>", "</s>", "<unk>", "once", "upon", "a", "time", "there")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def make_model(vocab_size: int = len(WORDS)) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=64, eos_token_id=1, bos_token_id=0, **sizes)
    return LlamaForCausalLM(config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    make_model().save_pretrained(target)
    make_tokenizer().save_pretrained(target)
    return target


def loaded(words: tuple[str, ...] | None = WORDS, vocab_size: int = len(WORDS), name: str = "m") -> LoadedModel:
    tokenizer = make_tokenizer(words) if words else None
    return LoadedModel(name, make_model(vocab_size), tokenizer, torch.device("cpu"), torch.float32)


def test_load_from_a_folder(folder: Path) -> None:
    model = load_model(folder, device="cpu", dtype="float32")
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert (model.context_length, model.vocab_size) == (64, len(WORDS))
    assert not model.model.training
    assert model.tokenizer is not None
    assert model.tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert model.eos_token_ids == {1}
    for ours, theirs in zip(model.model.parameters(), make_model().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_dtype_and_missing_tokenizer(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "bare")
    model = load_model(str(tmp_path / "bare"), device="cpu", dtype="bfloat16")
    assert model.dtype is model.model.dtype is torch.bfloat16
    assert model.tokenizer is None
    assert load_model(str(tmp_path / "bare"), make_tokenizer(), device="cpu").tokenizer is not None


def test_unknown_names(site: FakeSite, tmp_path: Path) -> None:
    site.install("fastllm-plugin-x", {"fastllm.models": {"stories": "mod_x:MODEL"}}, {})
    with pytest.raises(ModelError, match="'storis': no such registered model or folder; did you mean 'stories'"):
        resolve_model("storis")
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        load_model("nobody/nothing", device="cpu")


def test_registered_model(site: FakeSite, folder: Path) -> None:
    source = f"""
        from pathlib import Path
        class Model:
            description, method, options = "tiny", "speculative", {{"speculative": {{"draft_model": "x"}}}}
            def path(self): return Path({str(folder)!r})
        MODEL, WRONG = Model(), 3
    """
    names = {"tiny": "mod_tiny:MODEL", "wrong": "mod_tiny:WRONG"}
    site.install("fastllm-plugin-tiny", {"fastllm.models": names}, {"mod_tiny": source})
    registered = registered_model("tiny")
    assert registered is not None
    assert registered.method == "speculative"
    assert load_model("tiny", device="cpu").name == "tiny"
    assert registered_model("unknown") is None
    with pytest.raises(PluginContractError, match="is no RegisteredModel"):
        registered_model("wrong")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        load_model(folder, device="cpu")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"must be safetensors, and .* has only pytorch_model\.bin.*convert"):
        load_model(folder, device="cpu")


def test_missing_and_broken_weights_are_errors(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"the weight files lack \d+ tensors, such as model\.layers\.2"):
        load_model(folder, device="cpu")
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 9}))
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("config", "words"), [(T5Config(), "is an encoder-decoder"), (MambaConfig(), "keeps a recurrent state")]
)
def test_refused_architectures(tmp_path: Path, config: Any, words: str) -> None:
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedModel, match=words):
        load_model(tmp_path, device="cpu")


def test_longrope_ends_where_its_frequencies_change() -> None:
    model = load_model(family("phi3, LongRoPE").model())
    assert model.config.max_position_embeddings == 256
    assert model.context_length == 64


def test_loaded_module_is_taken_as_it_is() -> None:
    module = make_model().to(torch.bfloat16).train()
    model = load_model(module, make_tokenizer())
    assert model.model is module
    assert module.training
    assert module.dtype is model.dtype is torch.bfloat16
    with pytest.raises(ModelError, match="is loaded in bfloat16, not in float32"):
        load_model(module, dtype="float32")
    module.model.norm.to("meta")
    with pytest.raises(ModelError, match="lie on cpu, meta"):
        load_model(module)
    with pytest.raises(ModelError, match="not Linear"):
        load_model(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_same_vocabulary(caplog: pytest.LogCaptureFixture) -> None:
    verify_same_vocabulary(loaded(), loaded(vocab_size=16))  # padded embeddings are no difference
    verify_same_vocabulary(loaded((*WORDS, "more"), 9), loaded())  # nor are entries that only one of them has
    with caplog.at_level(logging.WARNING, "fastllm"):
        verify_same_vocabulary(loaded(), loaded(None, name="bare"))
    assert "'bare' came without a tokenizer" in caplog.text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: loaded((*WORDS[:6], "there", "time")), r"2 of 8 entries differ \('time' is 6 in the target, 7 in the"),
        (lambda: loaded((*WORDS[:7], "house")), "'there' is 7 in the target, missing, and 7 is 'house' in the drafter"),
        (lambda: loaded(None, 16, "bare"), "16 and 8 entries, and 'bare' came without a tokenizer"),
    ],
)
def test_other_vocabulary(make: Callable[[], LoadedModel], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        verify_same_vocabulary(loaded(), make())
    assert "tokenizer" in str(caught.value)


def test_generation_defaults() -> None:
    assert GenerationDefaults.of(None, 7) == GenerationDefaults(frozenset({7}))
    silent = GenerationDefaults.of(GenerationConfig(), 7)
    assert silent.unapplied == ()
    assert silent.sampling() == SamplingParams()
    neutral = GenerationConfig(repetition_penalty=1.0, num_beams=1, bad_words_ids=None, temperature=1.0, top_p=1.0)
    assert GenerationDefaults.of(neutral).unapplied == ()
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.95, eos_token_id=[3, 4], guidance_scale=1.5, typical_p=0.9
    )
    defaults = GenerationDefaults.of(config, 7)
    assert defaults.eos_token_ids == {3, 4}
    assert defaults.sampling() == SamplingParams(temperature=0.6, top_k=50, top_p=0.95)
    assert defaults.unapplied == ("typical_p = 0.9", "guidance_scale = 1.5")


def test_generation_defaults_of_the_logits() -> None:
    config = GenerationConfig(
        eos_token_id=4, repetition_penalty=1.1, no_repeat_ngram_size=3, suppress_tokens=[5], min_length=9,
        bad_words_ids=[[4], [6], [7, 8]], sequence_bias=[[[1, 2], -0.5]],
    )  # fmt: skip
    defaults = GenerationDefaults.of(config)
    assert defaults.unapplied == ()
    assert defaults.suppress_tokens == (5,)
    assert defaults.controls(4) == {
        "sequence_bias": (((1, 2), -0.5),),
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "bad_words": ((6,), (7, 8)),  # a word that ends the text is none, as in transformers
        "min_new_tokens": 5,
    }
    assert "min_new_tokens" not in defaults.controls(9)
