"""The probe lets through what the port runs rightly, and refuses what would silently write another text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastllm_core import UnsupportedModel, load, quirks
from fastllm_core.models import load_model
from fastllm_core.network import Network
from fastllm_core.probe import check_hidden, check_split, check_whole
from fastllm_core.spans import Span
from fastllm_core.testing import tiny_model
from fastllm_core.testing.families import family


def network_of(family: str, **settings: Any) -> Network:
    return Network(load_model(tiny_model(family, **settings)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mistral", "qwen3", "falcon"])
def test_a_supported_family_passes_whole_and_split(family: str) -> None:
    network = network_of(family)
    check_whole(network)
    for layer in range(1, network.layers):
        check_split(network, layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_mistaken_for_a_difference(dtype: torch.dtype) -> None:
    check_whole(Network(load_model(tiny_model().to(dtype))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("marian", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}, "its logits change by"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "Error"),
    ],
)
def test_what_ignores_positions_or_the_cache_is_refused_when_composing(
    family: str, settings: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the table of adapters, which knows these two, as the next family of their kind will come."""
    monkeypatch.setattr(quirks, "ADAPTERS", ())
    with pytest.raises(UnsupportedModel, match=f"does not support explicit positions and masks.*{reason}"):
        load(tiny_model(family, **settings), "plain")


def test_an_attention_that_drops_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("llama")
    whole = network._masks
    monkeypatch.setattr(network, "_masks", lambda *arguments: torch.zeros_like(whole(*arguments)))
    with pytest.raises(UnsupportedModel, match="does not support explicit positions and masks"):
        check_whole(network)


def test_a_view_that_is_not_the_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """NanoChat norms its embeddings before the first layer, and without its adapter the hidden states again."""
    monkeypatch.setattr(quirks, "ADAPTERS", ())
    network = network_of("nanochat")
    check_whole(network)
    with pytest.raises(UnsupportedModel, match="being run in two parts, cut before layer 1"):
        check_split(network, 1)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "llama4_text", "gpt_oss"])
def test_windows_are_probed_shorter_than_they_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's window is far longer than the probe's eight tokens; one position more or less is still noticed."""
    settings = {"sliding_window": 4096, "attention_chunk_size": 4096}
    network = network_of(family, **settings, head_dim=8, num_local_experts=4, intermediate_size_mlp=48)
    check_whole(network)
    narrow = Span.narrow
    monkeypatch.setattr(Span, "narrow", lambda span, mask, queries, keys: narrow(span, mask, queries + 1, keys))
    with pytest.raises(UnsupportedModel, match="does not support its windows of attention as masks by position"):
        check_whole(network)


def test_hidden_states_that_a_drafter_will_ask_for_are_looked_for_when_composing() -> None:
    network = network_of("llama")
    check_hidden(network, (0, 1, network.layers))
    stacked = Network(load_model(family("gemma3n_text").model()))
    with pytest.raises(UnsupportedModel, match="does not give the hidden states"):
        check_hidden(stacked, (stacked.layers,))
