"""Families against their unmodified models, by every road: a dozen that differ in what can go wrong.

All the others, and what is refused, are in tests/test_models_page.py (slow).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from fastllm_core import layout, views
from fastllm_core.cache import SlotCache
from fastllm_core.spans import Span
from fastllm_core.testing import equality
from fastllm_core.testing.equality import CHECKS, Trial
from fastllm_core.testing.families import UNEVEN, WINDOW, family

FAMILIES = (
    "llama",
    "mistral",  # windows everywhere
    "gemma2",  # soft-caps
    "gemma3_text",  # windows in some layers, with other rotary frequencies
    "gpt_neo",  # learned positions, windows that the model would cut by slot
    "gpt_oss",  # attention sinks, experts
    "llama4_text",  # chunks, layers without positions that count the cache
    "deepseek_v3",  # latent attention
    "gemma3n_text",  # layers that share keys and values
    "opt",  # an MLP without a module
    "bloom",  # ALiBi
    "nanochat",  # a norm before the first layer
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny matrices are multiplied faster by one thread than by two that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def trial(name: str) -> Trial:
    if name == "gemma3n_text" and Version(transformers.__version__) < Version("5.6"):
        pytest.skip("transformers 5.5 reads other keys without a cache than with one, and fastllm refuses that")
    return Trial(family(name).model())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_its_unmodified_model(name: str, check: str) -> None:
    if (name, check) in {("gemma3n_text", "split"), ("gemma3n_text", "skip"), ("bloom", "skip")}:
        with pytest.raises(views.UnsupportedModel, match="cannot"):
            CHECKS[check](trial(name))
    else:
        CHECKS[check](trial(name))


def test_windows_and_layers_are_such_that_a_mistake_would_show() -> None:
    config: Any = trial("gemma3_text").network.config
    assert config.layer_types == [*UNEVEN]
    for name in ("mistral", "gemma3_text", "gpt_neo", "llama4_text"):
        spans = [span for _, span in trial(name).network.spans]
        assert {span.window or span.chunk for span in spans} - {None} == {WINDOW}
        assert max(len(prompt) for prompt in trial(name).prompts) > 2 * WINDOW
        assert len({tuple(text) for text in trial(name).texts}) == 3
        assert min(len(set(text)) for text in trial(name).texts) > 3


def wrong(name: str) -> Trial:
    """A trial of its own, to be spoilt."""
    return copy.copy(trial(name))


@pytest.mark.parametrize(("name", "check"), [("mistral", "plain"), ("llama4_text", "chain"), ("gpt_neo", "tree")])
def test_a_window_that_is_one_too_long_is_found(name: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Span.narrow
    monkeypatch.setattr(Span, "narrow", lambda span, mask, queries, keys: narrow(span, mask, queries - 1, keys))
    with pytest.raises(AssertionError, match="generate"):
        CHECKS[check](wrong(name))


def test_a_window_by_slot_is_found_in_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = layout.tree

    def by_slot(*arguments: Any, **named: Any) -> Any:
        inputs = tree(*arguments, **named)
        slots = torch.arange(inputs.mask.shape[2]).expand(len(inputs.positions), -1)
        return type(inputs)(inputs.tokens, None, inputs.positions, inputs.slots, inputs.mask, slots)

    monkeypatch.setattr(layout, "tree", by_slot)
    CHECKS["chain"](wrong("mistral"))
    with pytest.raises(AssertionError, match="tree rounds differ from generate"):
        CHECKS["tree"](wrong("mistral"))


def test_a_path_that_is_not_gathered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotCache, "_gather", lambda cache, starts, path: None)
    CHECKS["chain"](wrong("llama"))
    with pytest.raises(AssertionError, match="tree rounds differ from generate"):
        CHECKS["tree"](wrong("llama"))


def test_a_rejected_row_that_is_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback that leaves the length one too far."""
    commit = SlotCache.commit

    def too_far(cache: SlotCache, starts: Any, kept: Any, path: Any) -> None:
        commit(cache, starts, kept, path)
        for store in cache._keys:
            store[0, :, starts[0]] = store[0, :, starts[0] + 1]

    monkeypatch.setattr(SlotCache, "commit", too_far)
    with pytest.raises(AssertionError, match="chain rounds differ from generate"):
        CHECKS["chain"](wrong("llama"))


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.12"), reason="Gemma 3 asked its layers then")
def test_a_view_with_the_whole_configuration_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(config: Any, start: int, stop: int, total: int) -> None:
        config.num_hidden_layers = stop - start

    monkeypatch.setattr(views, "_cut_config", keep)
    spoilt = wrong("gemma3_text")
    spoilt.network = copy.copy(spoilt.network)
    spoilt.network._views = {}
    with pytest.raises(AssertionError, match="cut before layer"):
        CHECKS["split"](spoilt)


def test_a_sublayer_that_is_not_skipped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = equality.forward
    monkeypatch.setattr(equality, "forward", lambda network, rows, **_: forward(network, rows, hidden_layers=(1, 2)))
    with pytest.raises(AssertionError, match="logits without attention"):
        CHECKS["skip"](wrong("opt"))


def test_a_sublayer_that_takes_the_residual_with_it_is_found() -> None:
    """BLOOM without the adapter's word: its sub-layers add the residual themselves."""
    spoilt = wrong("bloom")
    spoilt.network = copy.copy(spoilt.network)
    spoilt.network.adapter = replace(spoilt.network.adapter, refuse_skip="", attention=("self_attention",))
    with pytest.raises(AssertionError, match="still changes its input"):
        CHECKS["skip"](spoilt)
