"""Is a model's text the same by every road? Checks of the port against the unmodified model, greedy and in float32.

Each check compares with `model.generate` or with the model's own forward, and raises AssertionError with one sentence.
`check(model)` runs them all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..batch import Row
from ..cache import SlotCache
from ..errors import UnsupportedModel
from ..layout import chain
from ..models import load_model
from ..network import Network
from ..port import Outputs
from ..prefill import read
from ..probe import check_whole
from ..protocols import Drafter
from ..request import Request
from ..views import backbone, layer_list, sublayers
from .drafters import Branching, Scripted
from .engines import decode, make_engine

PROMPTS: Final = (13, 6, 21)
"""Tokens of the prompts: longer and shorter than a window of 8, neither a multiple of it nor of a chunk."""
NEW: Final = 18
"""New tokens: more than two windows."""
LONG: Final = 11
"""Drafted tokens, in a tree levels, that are more than a window of 8."""


class Trial:
    """A model under test, with what it says itself."""

    def __init__(self, model: PreTrainedModel, vocab_size: int | None = None) -> None:
        """model: a causal LM on the CPU.  vocab_size: tokens to draw prompts from; all of the model's by default."""
        self.model = model
        self.network = Network(load_model(model))
        check_whole(self.network)
        size = vocab_size or self.network.vocab_size
        draw = torch.Generator().manual_seed(5)
        self.size = size
        self.prompts = [torch.randint(3, size, (length,), generator=draw).tolist() for length in PROMPTS]
        self.rows = torch.randint(3, size, (2, 19), generator=draw)
        self._texts: list[list[int]] | None = None

    @property
    def texts(self) -> list[list[int]]:
        """What `generate` of the unmodified model continues each prompt with."""
        if self._texts is None:
            self._texts = [generate(self.model, prompt) for prompt in self.prompts]
        return self._texts

    def right(self, row: Row, count: int) -> list[int]:
        """The true next tokens of a row."""
        index = self.prompts.index(list(row.request.prompt))
        done = row.length - len(self.prompts[index])
        return self.texts[index][done : done + count]

    def wrong(self, row: Row, count: int) -> list[int]:
        """Never the true next tokens."""
        return [(token + 1) % self.size for token in self.right(row, count)]

    def partly_right(self, row: Row, count: int) -> list[int]:
        """The true next tokens, but every fourth position is wrong: a round keeps from none to three."""
        return [
            (token + 1) % self.size if (row.length + i) % 4 == 0 else token
            for i, token in enumerate(self.right(row, count))
        ]


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: Sequence[int], count: int = NEW) -> list[int]:
    """What the unmodified model continues a prompt with, greedily."""
    answer: Any = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False, num_beams=1
    )
    return answer[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def plain(trial: Trial) -> None:
    """Plain decoding is `generate`; prompts read in pieces give the model's own logits."""
    texts = run(trial, None)
    assert texts == trial.texts, f"plain decoding differs from generate: {_first(texts, trial.texts)}"
    network, cache = trial.network, SlotCache(trial.network, block=32)
    tokens = trial.rows[0]
    cache.reserve(1, 32)
    read(network, cache, 0, tokens[:11].tolist(), 0)
    out = network.forward(chain(tokens[None, 11:], torch.tensor([11]), 32), cache.layers(slice(0, 1), 32))
    with torch.inference_mode():
        own = trial.model(tokens[None], use_cache=False).logits[:, 11:]
    _close(out.logits, own, "logits of a prompt read in pieces")


@torch.inference_mode()
def split(trial: Trial) -> None:
    """Two parts, cut anywhere, are the whole, bit for bit."""
    network = trial.network
    rows, starts = trial.rows, torch.zeros(2, dtype=torch.long)
    if network.adapter.refuse_split:  # says more than a lack of hidden states
        raise UnsupportedModel(f"it cannot be run in parts: {network.adapter.refuse_split}")
    whole = forward(network, rows, hidden_layers=tuple(range(network.layers)))
    assert whole.logits is not None
    for cut in range(1, network.layers):
        cache = SlotCache(network, block=32)
        cache.reserve(2, 32)
        layers = cache.layers(slice(0, 2), 32)
        lower = network.forward(chain(rows, starts, 32), layers, stop=cut).hidden[cut]
        difference = (lower - whole.hidden[cut]).abs().max().item()
        assert difference == 0, f"cut before layer {cut}: its input changes by {difference:.2g}"
        upper = network.forward(chain(rows, starts, 32, hidden=lower), layers, start=cut).logits
        assert upper is not None
        difference = (upper - whole.logits).abs().max().item()
        assert difference == 0, f"cut before layer {cut}: logits change by {difference:.2g}"


def skip(trial: Trial) -> None:
    """Skipping sub-layers is the model with their outputs set to 0; a layer without any hands its input on."""
    last = trial.network.layers - 1
    whole = forward(trial.network, trial.rows).logits
    assert whole is not None
    for attention, mlp in (({1, last}, set[int]()), (set[int](), {0, last}), ({1}, {0, 1})):
        skipped: dict[str, Any] = {"skip_attention": frozenset(attention), "skip_mlp": frozenset(mlp)}
        given = forward(trial.network, trial.rows, hidden_layers=(1, 2), **skipped)
        assert given.logits is not None
        with torch.inference_mode():
            wanted = silenced(trial, attention, mlp)(trial.rows, use_cache=False).logits
        _close(given.logits, wanted, f"logits without attention {sorted(attention)} and MLP {sorted(mlp)}")
        assert (given.logits - whole).abs().max() > 1e-3 * whole.abs().max(), "skipping changed nothing"
    alike = torch.cosine_similarity(given.hidden[1], given.hidden[2], dim=-1).min().item()
    assert alike > 0.9, f"a layer without attention and MLP still changes its input: cosine {alike:.2f}"


def chains(trial: Trial) -> None:
    """Rounds over chains: all right and longer than a window, all wrong, partly right."""
    for guess, length in ((trial.right, LONG), (trial.wrong, 2), (trial.partly_right, 4)):
        texts = run(trial, Scripted(guess), draft_length=length)
        assert texts == trial.texts, f"chain rounds differ from generate: {_first(texts, trial.texts)}"


def trees(trial: Trial) -> None:
    """Rounds over trees whose kept path is not their first, and deeper than a window."""
    for guess, length, branches in ((trial.right, LONG, 1), (trial.partly_right, 4, 2)):
        texts = run(trial, Branching(guess, branches, trial.size), draft_length=length)
        assert texts == trial.texts, f"tree rounds differ from generate: {_first(texts, trial.texts)}"


def ragged(trial: Trial) -> None:
    """Three rows in one batch that join one after the other."""
    for drafter in (Scripted(trial.partly_right), Branching(trial.partly_right, 1, trial.size)):
        texts = run(trial, drafter, every=2)
        assert texts == trial.texts, f"rows of a batch differ from generate: {_first(texts, trial.texts)}"


CHECKS: Final[dict[str, Callable[[Trial], None]]] = {
    "plain": plain,
    "split": split,
    "skip": skip,
    "chain": chains,
    "tree": trees,
    "ragged": ragged,
}
"""By the names of their columns in docs/models.md."""


def check(model: PreTrainedModel, vocab_size: int | None = None) -> dict[str, str]:
    """The result of every check: "" where it passed, else why not. Raises UnsupportedModel if the port does not fit.

    A part of the port that the model is refused for counts with its reason, "refused: ...".
    """
    trial = Trial(model, vocab_size)
    return {name: outcome(partial(one, trial)) for name, one in CHECKS.items()}


def outcome(one: Callable[[], None]) -> str:
    """Nothing if a check passes, "refused: ..." or why it fails."""
    try:
        one()
    except UnsupportedModel as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def run(trial: Trial, drafter: Drafter | None, *, draft_length: int = 4, every: int | None = None) -> list[list[int]]:
    """Decode the prompts. every: steps between one's joining and the next's; by default one waits for the other."""
    rows = 1 if every is None else len(trial.prompts)
    engine = make_engine(trial.model, drafter, draft_length=draft_length, max_rows=rows, prefill_chunk=8)
    requests = [Request(tuple(prompt), max_new_tokens=NEW) for prompt in trial.prompts]
    return decode(engine, requests, every=every or 0)


def forward(network: Network, rows: Tensor, **options: Any) -> Outputs:
    """Some rows in one forward over a fresh cache."""
    cache = SlotCache(network, block=32)
    cache.reserve(len(rows), 32)
    starts = torch.zeros(len(rows), dtype=torch.long)
    return network.forward(chain(rows, starts, 32), cache.layers(slice(0, len(rows)), 32), **options)


def silenced(trial: Trial, attention: set[int], mlp: set[int]) -> PreTrainedModel:
    """A copy of the unmodified model whose sub-layers compute everything and then answer 0."""

    def zero(module: nn.Module, inputs: object, output: Any) -> Any:
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    model, adapter = copy.deepcopy(trial.network.loaded.model), trial.network.adapter
    layers = layer_list(backbone(model, adapter), adapter)
    for skipped, names in ((attention, adapter.attention), (mlp, adapter.mlp)):
        for layer in skipped:
            for name in sublayers(layers[layer], names):
                layers[layer].get_submodule(name).register_forward_hook(zero)
    return model


def _close(given: Tensor | None, wanted: Tensor, what: str) -> None:
    assert given is not None
    difference, largest = (given - wanted).abs().max().item(), wanted.abs().max().item()
    assert difference <= 1e-4 * max(1.0, largest), f"{what}: off by {difference:.2g} of {largest:.2g}"


def _first(given: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> str:
    """Where two lists of texts part."""
    for row, (mine, theirs) in enumerate(zip(given, wanted, strict=True)):
        for place, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            if a != b:
                return f"prompt {row}, new token {place}"
        if len(mine) != len(theirs):
            return f"prompt {row}, {len(mine)} tokens instead of {len(theirs)}"
    return "nowhere"
