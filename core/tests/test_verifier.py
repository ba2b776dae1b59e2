"""Verification against the unmodified model, run step by step on every path."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastllm_core.batch import Batch, Row
from fastllm_core.cache import SlotCache
from fastllm_core.context import Context
from fastllm_core.layout import ancestors, chain, tree
from fastllm_core.models import LoadedModel
from fastllm_core.network import Network
from fastllm_core.port import Inputs, Outputs
from fastllm_core.prefill import read
from fastllm_core.programs import ProgramFolder
from fastllm_core.protocols import Draft, ExtraRows, Resume
from fastllm_core.request import Request
from fastllm_core.sampling import Sampling
from fastllm_core.testing import tiny_model
from fastllm_core.testing.unrolled import Unrolled
from fastllm_core.verifier import TargetVerifier, round_widths

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 7},
}
LENGTHS = (13, 1, 30)
"""Committed tokens of each row. The last one's prefix is far longer than the sliding windows."""
LONGEST = 7
Parents = list[list[int]]


class Watched(Network):
    """Remembers what its last forward was asked and answered, padding included."""

    asked: Inputs
    answer: Outputs

    def forward(self, inputs: Inputs, *args: Any, **more: Any) -> Outputs:
        self.asked, self.answer = inputs, super().forward(inputs, *args, **more)
        return self.answer


class Setting:
    """A model, rows of different lengths whose prompts have been read, and a verifier."""

    def __init__(
        self,
        family: str = "llama",
        lengths: tuple[int, ...] = LENGTHS,
        block: int = 16,
        hidden_layers: tuple[int, ...] = (),
        model: PreTrainedModel | None = None,
    ) -> None:
        self.model = model or tiny_model(family, **FAMILIES[family])
        self.network = Watched(LoadedModel("tiny", self.model, None, torch.device("cpu"), self.model.dtype))
        self.cache = SlotCache(self.network, block)
        context = SimpleNamespace(network=self.network, cache=self.cache, draft_length=LONGEST)
        self.verifier = TargetVerifier(cast("Context", context), hidden_layers)
        self.cache.reserve(len(lengths), max(lengths))
        rows = []
        for slot, length in enumerate(lengths):
            text = [random.Random(slot * 100 + i).randrange(64) for i in range(length)]
            rows.append(Row(slot, Request(tuple(text), 9), text, seed=slot, slot=slot))
            if length > 1:
                read(self.network, self.cache, slot, text[:-1], 0)
        sampling = Sampling.of([row.request.sampling for row in rows], "cpu")
        self.batch = Batch(tuple(rows), (LONGEST,) * len(rows), torch.device("cpu"), sampling)

    def truth(self, row: int, more: list[int]) -> Tensor:
        """What the unmodified model says after a row's text and some more tokens: float[V]."""
        with torch.no_grad():
            return self.model(torch.tensor([self.batch.rows[row].tokens + more]), use_cache=False).logits[0, -1]

    def assert_right(self, logits: Tensor, tokens: Tensor, parents: Parents) -> None:
        for row, above in enumerate(parents):
            for node in range(-1, len(above)):
                path, at = [], node
                while at >= 0:
                    path.insert(0, int(tokens[row, at]))
                    at = above[at]
                assert close(logits[row, node + 1], self.truth(row, path)), (row, node)


def close(mine: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(mine, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))


def some_tokens(nodes: int, seed: int = 0, rows: int = len(LENGTHS)) -> Tensor:
    return torch.randint(0, 64, (rows, nodes), generator=torch.Generator().manual_seed(seed))


def chain_draft(tokens: Tensor, **more: Any) -> Draft:
    return Draft(tokens, torch.full((len(tokens),), tokens.shape[1]), **more)


def random_tree(nodes: int, seed: int = 0) -> Parents:
    rng = random.Random(seed)
    return [[rng.randrange(-1, node) for node in range(nodes)] for _ in LENGTHS]


def tree_draft(tokens: Tensor, parents: Parents, **more: Any) -> Draft:
    return chain_draft(tokens, parents=torch.tensor(parents), **more)


def in_a_row(nodes: int) -> Parents:
    return [list(range(-1, nodes - 1))] * len(LENGTHS)


def test_round_widths_double_up_to_the_longest_draft() -> None:
    assert round_widths(1) == (1, 2)
    assert round_widths(5) == (1, 2, 3, 5, 6)
    assert round_widths(8) == (1, 2, 3, 5, 9)
    assert round_widths(20) == (1, 2, 3, 5, 9, 17, 21)


def test_drafts_are_padded_to_a_few_widths() -> None:
    verifier = Setting().verifier
    assert [verifier.padded(width) for width in range(1, 11)] == [
        1,
        2,
        3,
        5,
        5,
        8,
        8,
        8,
        9,
        10,
    ]  # large trees keep theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nodes", [0, 3, LONGEST])
def test_a_chain_is_scored_as_if_step_by_step(family: str, nodes: int) -> None:
    setting, tokens = Setting(family), some_tokens(nodes)
    scores = setting.verifier.score(setting.batch, chain_draft(tokens))
    assert scores.logits.shape == (len(LENGTHS), nodes + 1, 64)
    setting.assert_right(scores.logits, tokens, in_a_row(nodes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nodes", [4, 12])
def test_a_tree_is_scored_as_if_path_by_path(family: str, nodes: int) -> None:
    setting, tokens, parents = Setting(family), some_tokens(nodes), random_tree(nodes)
    scores = setting.verifier.score(setting.batch, tree_draft(tokens, parents))
    setting.assert_right(scores.logits, tokens, parents)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_window_counts_positions_and_not_slots(family: str) -> None:
    """A tree deeper than the window, with a sibling before each node of its path: slots run ahead of positions."""
    levels = 10
    parents = [[2 * (node // 2) - 1 for node in range(2 * levels)]] * len(LENGTHS)
    setting, tokens = Setting(family), some_tokens(2 * levels)
    setting.assert_right(setting.verifier.score(setting.batch, tree_draft(tokens, parents)).logits, tokens, parents)


def test_the_next_round_builds_on_what_was_written() -> None:
    """Root and nodes stand in the slots that the cache expects to commit."""
    setting, tokens, parents = Setting("gemma3_text"), some_tokens(4), [[-1, -1, 1, 0]] * len(LENGTHS)
    setting.verifier.score(setting.batch, tree_draft(tokens, parents))
    path = torch.tensor([[1, 2]] * len(LENGTHS))
    setting.cache.commit([length - 1 for length in LENGTHS], [2] * len(LENGTHS), path)
    for row in setting.batch.rows:
        row.tokens += [int(tokens[row.slot, 1]), int(tokens[row.slot, 2]), 5]
    following = Batch(setting.batch.rows, setting.batch.draft_lengths, setting.batch.device, setting.batch.sampling)
    more = some_tokens(3, seed=1)
    scores = setting.verifier.score(following, chain_draft(more))
    setting.assert_right(scores.logits, more, in_a_row(3))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_hidden_states_are_those_of_the_asked_layers(family: str) -> None:
    last = FAMILIES[family].get("num_hidden_layers", 4)
    setting, tokens = Setting(family, hidden_layers=(0, 2, last)), some_tokens(5)  # 6 rows of 8
    scores = setting.verifier.score(setting.batch, chain_draft(tokens))
    assert set(scores.hidden) == {0, 2, last}
    for row in setting.batch.rows:
        ids = torch.tensor([row.tokens + tokens[row.slot].tolist()])
        with torch.no_grad():
            expected = setting.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        for layer, states in scores.hidden.items():
            assert states.shape == (len(LENGTHS), 6, 32)
            assert close(states[row.slot], expected[layer][0, -6:])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_resuming_at_any_layer_equals_the_whole_verification(family: str, shape: str) -> None:
    """The drafter has run the lower layers over root and nodes, through the target's own cache."""
    setting, tokens, parents = Setting(family), some_tokens(5), random_tree(5) if shape == "tree" else in_a_row(5)
    whole = setting.verifier.score(setting.batch, tree_draft(tokens, parents)).logits
    for layer in range(1, setting.network.layers):
        setting = Setting(family, model=setting.model)
        hidden = lower_layers(setting, tokens, parents, layer)
        draft = tree_draft(tokens, parents) if shape == "tree" else chain_draft(tokens)
        resumed = Draft(draft.tokens, draft.lengths, draft.parents, resume=Resume(layer, hidden))
        setting.network.answer = cast("Outputs", None)
        scores = setting.verifier.score(setting.batch, resumed)
        assert close(scores.logits, whole), layer
        assert setting.network.answer.logits is not None
        assert setting.network.answer.logits.isfinite().all()


def lower_layers(setting: Setting, tokens: Tensor, parents: Parents, layer: int) -> Tensor:
    rows = torch.cat([setting.batch.roots[:, None], tokens], dim=1)
    sees = ancestors(torch.tensor(parents))
    extent = setting.cache.extent(max(LENGTHS) - 1 + rows.shape[1])
    setting.cache.reserve(len(LENGTHS), extent)
    inputs = tree(rows, sees, sees.sum(-1) - 1, setting.batch.starts, extent)
    layers = setting.cache.layers(slice(0, len(LENGTHS)), extent)
    return setting.network.forward(inputs, layers, stop=layer, hidden_layers=(layer,)).hidden[layer]


def test_resuming_really_uses_the_hidden_states() -> None:
    setting, tokens = Setting(), some_tokens(5)
    hidden = lower_layers(setting, tokens, in_a_row(5), 2)
    right = setting.verifier.score(setting.batch, chain_draft(tokens, resume=Resume(2, hidden))).logits
    wrong = setting.verifier.score(setting.batch, chain_draft(tokens, resume=Resume(2, hidden + 0.1))).logits
    assert not close(wrong, right)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nodes", [0, 5])
@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_extra_rows_follow_their_own_mask_and_disturb_nobody(family: str, nodes: int, shape: str) -> None:
    setting, tokens = Setting(family), some_tokens(nodes)
    parents = random_tree(nodes) if shape == "tree" else in_a_row(nodes)
    draws, width, count = torch.Generator().manual_seed(3), nodes + 1, 6
    mask = torch.rand(len(LENGTHS), count, width + count, generator=draws) < 0.4
    mask |= torch.cat([torch.zeros(count, width), torch.eye(count)], dim=1).bool()  # every row sees itself
    extra = ExtraRows(some_tokens(count, 4), torch.randint(0, 5, (len(LENGTHS), count), generator=draws), mask)
    draft = tree_draft(tokens, parents, extra=extra) if shape == "tree" and nodes else chain_draft(tokens, extra=extra)
    scores = setting.verifier.score(setting.batch, draft)
    assert scores.logits.shape[1] == width
    setting.assert_right(scores.logits, tokens, parents)
    assert scores.extra_logits is not None
    assert scores.extra_logits.shape == (len(LENGTHS), count, 64)
    for row in setting.batch.rows:
        assert close(scores.extra_logits[row.slot], by_hand(setting, row, tokens, parents, extra))


def by_hand(setting: Setting, row: Row, tokens: Tensor, parents: Parents, extra: ExtraRows) -> Tensor:
    """The extra rows' logits by one forward of the unmodified model over everything, with a mask made here."""
    above = torch.tensor(parents[row.slot], dtype=torch.long)[None]
    sees = ancestors(above)[0]
    prefix, width, count = row.length - 1, len(sees), extra.tokens.shape[1]
    total = prefix + width + count
    seen = torch.zeros(total, total, dtype=torch.bool)
    seen[:prefix, :prefix] = torch.ones(prefix, prefix).tril().bool()
    seen[prefix:, :prefix] = True
    seen[prefix : prefix + width, prefix : prefix + width] = sees
    seen[prefix + width :, prefix:] = extra.mask[row.slot]
    positions = torch.cat([torch.arange(prefix), prefix + sees.sum(-1) - 1, prefix + extra.depths[row.slot]])
    near = positions[:, None] - positions[None] < (
        setting.model.config.get_text_config().to_dict().get("sliding_window") or 999
    )
    masks = {"full_attention": additive(seen), "sliding_attention": additive(seen & near)}
    mixed = getattr(setting.model.config, "layer_types", None)
    ids = torch.cat([torch.tensor(row.tokens), tokens[row.slot], extra.tokens[row.slot]])[None]
    given = masks if mixed else masks["sliding_attention"]
    with torch.no_grad():
        answer = setting.model(ids, attention_mask=given, position_ids=positions[None], use_cache=False)
    return cast("Tensor", answer.logits[0, -count:])


def additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["chain", "tree", "extra"])
def test_padding_rows_are_finite(family: str, shape: str) -> None:
    """A row that saw nothing could be NaN, and a masked NaN value still poisons its readers."""
    setting, tokens = Setting(family, lengths=(1, 1, 20)), some_tokens(5)
    extra = ExtraRows(some_tokens(2), torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2, 8, dtype=torch.bool))
    drafts = {
        "chain": chain_draft(tokens),
        "tree": tree_draft(tokens, random_tree(5)),
        "extra": chain_draft(tokens, extra=extra),
    }
    setting.verifier.score(setting.batch, drafts[shape])
    assert setting.network.asked.mask.any(-1).all()  # every row sees something, if only itself
    logits = setting.network.answer.logits
    assert logits is not None
    assert logits.shape[1] == (10 if shape == "extra" else 8)
    assert logits.isfinite().all()
    assert all(
        keys.isfinite().all() and values.isfinite().all() for keys, values in setting.cache.layers(slice(0, 3), 32)
    )


def test_a_shorter_rows_padding_changes_nothing() -> None:
    """What lies beyond a row's own draft length may be any token, and hang anywhere."""
    setting, tokens, parents = Setting(), some_tokens(6), random_tree(6)
    first = setting.verifier.score(setting.batch, tree_draft(tokens, parents)).logits
    tokens[1, 3:], parents[1][3:] = 63, [-1, -1, -1]
    second = setting.verifier.score(setting.batch, tree_draft(tokens, parents)).logits
    assert close(first[1, :4], second[1, :4])
    assert close(first[[0, 2]], second[[0, 2]])


def test_a_large_tree_makes_room_in_the_cache() -> None:
    setting, nodes = Setting(block=4), 40
    tokens, parents = some_tokens(nodes), random_tree(nodes)
    scores = setting.verifier.score(setting.batch, tree_draft(tokens, parents))
    assert setting.cache.capacity >= max(LENGTHS) + nodes
    setting.assert_right(scores.logits, tokens, parents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_at_one_width_a_rows_bits_depend_on_its_own_path_alone(family: str, dtype: torch.dtype) -> None:
    """Not on later nodes, on the draft's own length, on the cache's extent or on the neighbours' texts."""
    model = tiny_model(family, **FAMILIES[family]).to(dtype)
    tokens = some_tokens(7)

    def bits(draft: Tensor, **more: Any) -> Tensor:
        setting = Setting(family, model=model, **more)
        return setting.verifier.score(setting.batch, chain_draft(draft)).logits[0, :4]

    expected = bits(tokens)
    changed = tokens.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 64
    changed[1:] = 7
    assert torch.equal(bits(changed), expected)
    assert torch.equal(bits(tokens[:, :5]), expected)  # padded to the same 8 rows
    assert torch.equal(bits(tokens, block=256), expected)
    assert torch.equal(bits(tokens, lengths=(13, 40, 2)), expected)


def test_a_chain_written_as_a_tree_gives_the_same_bits() -> None:
    setting, tokens = Setting(), some_tokens(7)
    one = setting.verifier.score(setting.batch, chain_draft(tokens)).logits
    other = setting.verifier.score(setting.batch, tree_draft(tokens, in_a_row(7))).logits
    assert torch.equal(one, other)


def test_chain_reference() -> None:
    """The harness itself: a forward over a whole text equals the model, so a failure above is the verifier's."""
    setting = Setting(lengths=(9,))
    ids = torch.tensor([setting.batch.rows[0].tokens])
    setting.cache.reserve(1, 16)
    out = setting.network.forward(chain(ids, torch.tensor([0]), 16), setting.cache.layers(slice(0, 1), 16))
    assert out.logits is not None
    assert close(out.logits[0, -1], setting.truth(0, []))


PARTS = ("tokens", "positions", "slots", "mask")


def handing_on(tmp_path: Path, lengths: tuple[int, ...] = LENGTHS) -> tuple[Setting, Inputs]:
    """Rows behind a plain round of a back end that hands on the next row, which was the most likely one everywhere."""
    setting = Setting(lengths=lengths)
    setting.network.runner = Unrolled(ProgramFolder(tmp_path / "programs"), compiles=True).runner(setting.network)
    scores = setting.verifier.score(setting.batch, chain_draft(some_tokens(0, rows=len(lengths))))
    for row, token in zip(setting.batch.rows, scores.likely[:, 0].tolist(), strict=True):
        row.tokens.append(token)
    assert setting.network.answer.next is not None
    return setting, setting.network.answer.next


def plain(setting: Setting, rows: tuple[Row, ...]) -> Tensor:
    """Score the roots of some rows; returns what the target says behind them: float[B, V]."""
    batch = Batch(rows, (0,) * len(rows), setting.batch.device, setting.batch.sampling)
    logits = setting.verifier.score(batch, chain_draft(some_tokens(0, rows=len(rows)))).logits[:, 0]
    extent = setting.cache.extent(max(row.length for row in rows))
    wanted = chain(batch.roots[:, None], batch.starts, extent)
    for part in PARTS:
        assert torch.equal(getattr(setting.network.asked, part), getattr(wanted, part)), part
    return logits


def test_a_plain_round_takes_the_row_that_the_last_one_handed_on(tmp_path: Path) -> None:
    setting, behind = handing_on(tmp_path)
    for _ in range(2):
        logits = plain(setting, setting.batch.rows)
        assert setting.network.asked is behind
        for index, row in enumerate(setting.batch.rows):
            assert close(logits[index], setting.truth(index, []))
            row.tokens.append(int(logits[index].argmax()))
        assert setting.network.answer.next is not None
        behind = setting.network.answer.next


def test_a_token_that_was_not_the_likely_one_takes_its_place_alone(tmp_path: Path) -> None:
    setting, behind = handing_on(tmp_path)
    setting.batch.rows[1].tokens[-1] += 1
    logits = plain(setting, setting.batch.rows)
    assert setting.network.asked.mask is behind.mask
    assert close(logits[1], setting.truth(1, []))


@pytest.mark.parametrize("change", ["one left", "two changed places", "one went on", "one joined", "a row of 9 tokens"])
def test_a_row_is_not_handed_on_to_others(tmp_path: Path, change: str) -> None:
    setting, behind = handing_on(tmp_path, (13, 9, 13) if "places" in change else LENGTHS)
    first, second, third = setting.batch.rows
    stranger = Row(9, Request((7,) * 9, 9), [7] * 9, seed=0)
    rows = {
        "one left": (first, second),
        "two changed places": (third, second, first),
        "one went on": (first, second, third),
        "one joined": (first, second, third, stranger),
        "a row of 9 tokens": (first, stranger, third),
    }[change]
    if change == "one went on":
        third.tokens.append(3)
    plain(setting, rows)
    assert setting.network.asked is not behind


def test_nothing_is_handed_on_over_a_draft_or_into_a_larger_extent(tmp_path: Path) -> None:
    setting, _ = handing_on(tmp_path, (16,))
    assert setting.network.asked.mask.shape[2] == 16
    plain(setting, setting.batch.rows)
    assert setting.network.asked.mask.shape[2] == 32
    (row,) = setting.batch.rows
    row.tokens.append(5)
    batch = Batch((row,), (2,), setting.batch.device, setting.batch.sampling)
    setting.verifier.score(batch, chain_draft(some_tokens(2, rows=1)))
    assert setting.network.answer.next is None
    row.tokens.append(6)
    plain(setting, setting.batch.rows)
