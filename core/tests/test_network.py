"""The forward port against the model's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastllm_core.attention import FEW_ROWS
from fastllm_core.cache import SlotCache
from fastllm_core.clock import Clock
from fastllm_core.errors import UnsupportedModel
from fastllm_core.layout import chain
from fastllm_core.models import LoadedModel
from fastllm_core.network import Network
from fastllm_core.prefill import read
from fastllm_core.testing import tiny_model
from fastllm_core.testing.families import family

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 7},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "phi3": {"sliding_window": 8},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 4.0},
    "olmo2": {},
    "stablelm": {},
    "mixtral": {"sliding_window": 8},
}
ROWS = 20
every_family = pytest.mark.parametrize("family", FAMILIES)


def network_of(model: PreTrainedModel) -> Network:
    return Network(LoadedModel("tiny", model, None, torch.device("cpu"), torch.float32))


def some_tokens(batch: int, rows: int = ROWS) -> Tensor:
    return torch.randint(0, 64, (batch, rows), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def truth(model: PreTrainedModel, tokens: Tensor, **more: Any) -> Any:
    return model(tokens, use_cache=False, **more)


def close(mine: Tensor | None, theirs: Tensor) -> bool:
    assert mine is not None
    return torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * max(1.0, theirs.abs().max().item()))


@every_family
def test_logits_and_hidden_states_are_the_models_own(family: str) -> None:
    model = tiny_model(family, **FAMILIES[family])
    tokens = some_tokens(2)
    expected = truth(model, tokens, output_hidden_states=True)
    network, cache = network_of(model), SlotCache(network_of(model))
    cache.reserve(2, ROWS)
    layers = tuple(range(network.layers + 1))
    rows = chain(tokens, torch.zeros(2, dtype=torch.long), 64)
    out = network.forward(rows, cache.layers(slice(0, 2), 64), hidden_layers=layers)
    assert close(out.logits, expected.logits)
    assert network.vocab_size == expected.logits.shape[-1]
    for layer in layers:
        assert close(out.hidden[layer], expected.hidden_states[layer]), layer


@every_family
def test_rows_behind_prompts_of_other_lengths(family: str) -> None:
    """Read in chunks into slots of one cache, then a forward over all: each row as if it were alone."""
    model = tiny_model(family, **FAMILIES[family])
    network = network_of(model)
    cache = SlotCache(network, block=32)
    tokens, starts = some_tokens(3), [11, 4, 15]
    cache.reserve(3, ROWS + 12)
    for slot, start in enumerate(starts):
        read(network, cache, slot, tokens[slot, : start // 2].tolist(), 0)
        read(network, cache, slot, tokens[slot, start // 2 : start].tolist(), start // 2)
    fresh = torch.stack([tokens[slot, start : start + 5] for slot, start in enumerate(starts)])
    out = network.forward(chain(fresh, torch.tensor(starts), 32), cache.layers(slice(0, 3), 32))
    for slot, start in enumerate(starts):
        expected = truth(model, tokens[slot : slot + 1, : start + 5]).logits[0, start:]
        assert close(out.logits[slot], expected), slot


def test_only_the_last_rows_logits() -> None:
    network = network_of(tiny_model())
    cache = SlotCache(network)
    cache.reserve(1, ROWS)
    rows = chain(some_tokens(1), torch.zeros(1, dtype=torch.long), 64)
    out = network.forward(rows, cache.layers(slice(0, 1), 64), last_logits_only=True)
    whole = network.forward(rows, cache.layers(slice(0, 1), 64))
    assert out.logits.shape == (1, 1, 64)
    assert close(out.logits, whole.logits[:, -1:])


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_padding_may_stand_beyond_the_last_position(family: str) -> None:
    """At the end of the context a round still has its full width; learned positions end there."""
    settings = {"max_position_embeddings": 32, **FAMILIES[family]}
    model = tiny_model(family, **settings)
    network = network_of(model)
    cache = SlotCache(network, block=32)
    tokens = some_tokens(1, 32)
    cache.reserve(1, 40)
    read(network, cache, 0, tokens[0, :31].tolist(), 0)
    rows = chain(torch.cat([tokens[:, 31:], tokens[:, :5]], dim=1), torch.tensor([31]), 64)
    out = network.forward(rows, cache.layers(slice(0, 1), 64))
    assert close(out.logits[:, 0], truth(model, tokens).logits[:, -1])
    assert out.logits.isfinite().all()


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "paged|sdpa"])
def test_attention_without_explicit_masks_falls_back_on_the_copy(implementation: str) -> None:
    model = tiny_model()
    expected = truth(model, some_tokens(1)).logits
    model.config._attn_implementation = implementation
    network = network_of(model)
    cache = SlotCache(network)
    cache.reserve(1, ROWS)
    rows = chain(some_tokens(1), torch.zeros(1, dtype=torch.long), 64)
    assert close(network.forward(rows, cache.layers(slice(0, 1), 64)).logits, expected)
    assert (network.config._attn_implementation, model.config._attn_implementation) == (FEW_ROWS, implementation)


@pytest.mark.parametrize(
    ("family", "asked", "taken"),
    [("llama", "eager", "eager"), ("llama", "sdpa", FEW_ROWS), ("falcon", "sdpa", "sdpa"), ("gpt_oss", None, "eager")],
)
def test_the_attention_that_was_asked_for_is_kept(family: str, asked: str | None, taken: str) -> None:
    """Ours stands in for sdpa where a model looks its attention up by name; Falcon has the choice in its forward."""
    model = tiny_model(family, **({"attn_implementation": asked} if asked else {}))
    before = model.config._attn_implementation
    assert network_of(model).config._attn_implementation == taken
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("diagonal", "llama has attention of type 'diagonal', which is not supported"),
        ("linear_attention", "llama keeps a recurrent state, which a rejected draft could not be rolled back in"),
        ("indexed_attention", "llama chooses the keys that it attends to by an index of its own"),
    ],
)
def test_attention_that_the_port_cannot_mask_is_refused(kind: str, reason: str) -> None:
    model = tiny_model()
    model.config.layer_types = ["full_attention", kind, "full_attention", "full_attention"]
    with pytest.raises(UnsupportedModel, match=reason):
        network_of(model)


def test_a_model_without_a_cache_argument_is_refused() -> None:
    model = tiny_model()
    model.__class__ = type("Cacheless", (type(model),), {"forward": lambda self, input_ids: None})
    with pytest.raises(UnsupportedModel, match="Cacheless: its forward takes no key/value cache"):
        network_of(model)


def test_key_value_shapes_are_found_without_knowing_the_configuration() -> None:
    assert network_of(tiny_model("llama")).kv_shapes == ((2, 8, 8),) * 4
    assert network_of(tiny_model("gpt2")).kv_shapes == ((4, 8, 8),) * 4
    assert network_of(tiny_model("qwen3", head_dim=16)).kv_shapes == ((2, 16, 16),) * 4


def test_forwards_are_timed_in_the_current_phase() -> None:
    clock = Clock()
    network = Network(LoadedModel("tiny", tiny_model(), None, torch.device("cpu"), torch.float32), clock)
    cache = SlotCache(network)
    cache.reserve(1, ROWS)
    with clock.phase("verify"):
        network.forward(chain(some_tokens(1), torch.tensor([0]), 64), cache.layers(slice(0, 1), 64))
    phases, inside = clock.snapshot()
    assert 0 < inside["verify"] <= phases["verify"]
    assert inside["draft"] == 0


@pytest.mark.filterwarnings("ignore")
def test_hidden_states_that_a_model_does_not_give_layer_by_layer_are_refused() -> None:
    """Gemma 3n carries four streams between its layers."""
    network = network_of(family("gemma3n_text").model())
    cache = SlotCache(network)
    cache.reserve(1, ROWS)
    rows, layers = chain(some_tokens(1), torch.tensor([0]), 64), cache.layers(slice(0, 1), 64)
    with pytest.raises(UnsupportedModel, match="does not give the hidden states between its layers"):
        network.forward(rows, layers, hidden_layers=(2,))
