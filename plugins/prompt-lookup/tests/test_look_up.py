"""Look-ups against the quadratic definition: every place of a text is compared, and nothing is kept between calls."""

from __future__ import annotations

import tracemalloc
from array import array
from collections.abc import Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastllm_core import Batch, Draft, Request, Row, Sampling, SamplingParams
from fastllm_plugin_prompt_lookup.drafter import LookUp
from fastllm_plugin_prompt_lookup.index import BREAK, Index, Pick
from fastllm_plugin_prompt_lookup.plugin import PromptLookupOptions
from fastllm_plugin_prompt_lookup.record import MEMORY, PRIOR, WEIGHT

PICKS: tuple[Pick, ...] = ("recent", "first", "frequent")
VOTERS, TRIED = 32, 16

# -- the definition ----------------------------------------------------------------------------------------------------


def places(text: Sequence[int], gram: Sequence[int], pick: str) -> list[int]:
    """Behind every place where `gram` stands and the same text goes on."""
    found = [
        end
        for end in range(len(gram), len(text))
        if list(text[end - len(gram) : end]) == list(gram) and text[end] != BREAK
    ]
    if pick == "first":
        return found
    if pick == "recent":
        return found[::-1]
    voters = found[-VOTERS:]
    votes = [text[end] for end in voters]
    return sorted(voters, key=lambda end: (-votes.count(text[end]), -end))


def copied(text: Sequence[int], end: int, count: int) -> list[int]:
    """Token by token; where the text ends, from what has been copied already."""
    out: list[int] = []
    for index in range(end, end + count):
        token = [*text, *out][index]
        if token == BREAK:
            break
        out.append(token)
    return out


def paths(
    text: Sequence[int],
    others: Sequence[Sequence[int]],
    count: int,
    options: PromptLookupOptions,
    ends: frozenset[int] = frozenset(),
) -> list[tuple[int, ...]]:
    """The different continuations in order, each up to the first token that ends a text."""
    kept: list[tuple[int, ...]] = []
    tried = 0
    for size in range(options.max_ngram, options.min_ngram - 1, -1):
        for source in (text, *others) if size <= len(text) else ():
            for end in places(source, text[-size:], options.pick):
                if tried == TRIED or len(kept) == options.branches:
                    return kept
                tried += 1
                path = copied(source, end, count)
                stop = next((at + 1 for at, token in enumerate(path) if token in ends), len(path))
                new = tuple(path[:stop])
                if not any(old[: len(new)] == new for old in kept):
                    kept.append(new)
    return kept


def nodes(paths: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The nodes of their tree, each as its path from the root, as they come up."""
    return list(dict.fromkeys(tuple(path[: depth + 1]) for path in paths for depth in range(len(path))))


# -- the index ---------------------------------------------------------------------------------------------------------


def index_of(text: Sequence[int], sizes: range = range(1, 4), pick: Pick = "recent") -> Index:
    index = Index(sizes, len(text), pick)
    index.extend(text)
    return index


def found(index: Index, gram: Sequence[int]) -> list[int]:
    return list(index.ends(array("i", gram)))


few = st.integers(0, 3)  # so that everything repeats itself
texts = st.lists(few, min_size=1, max_size=80)


@given(
    pieces=st.lists(st.lists(st.integers(-1, 3), max_size=30), max_size=6), pick=st.sampled_from(PICKS), data=st.data()
)
def test_the_index_finds_what_the_definition_finds(pieces: list[list[int]], pick: Pick, data: st.DataObject) -> None:
    """However the text came in, and with breaks anywhere."""
    text = [token for piece in pieces for token in piece]
    index = Index(range(1, 5), len(text), pick)
    for piece in pieces:
        index.extend(piece)
    for gram in ([0], [1, 0], [2, 2, 2], data.draw(st.lists(few, min_size=1, max_size=4)), text[-3:]):
        if gram and BREAK not in gram:
            assert found(index, gram) == places(text, gram, pick)


@settings(deadline=None)
@given(text=texts, count=st.integers(1, 12), data=st.data())
def test_copies_are_made_token_by_token(text: list[int], count: int, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(text) - 1))
    assert index_of(text).copy(end, count) == copied(text, end, count)
    assert index_of([*text, BREAK]).copy(end, count) == text[end : end + count]


@settings(deadline=None)
@given(text=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=300))
def test_large_ids_in_a_full_index(text: list[int]) -> None:
    """As many different n-grams as there is room for: the table must still end its search."""
    index = index_of(text)
    for size in (1, 2, 3):
        for end in range(size, len(text)):
            assert end in found(index, text[end - size : end])
        assert not found(index, [7] * size) or [7] * size in [text[i : i + size] for i in range(len(text))]


@pytest.mark.parametrize("pick", PICKS)
def test_the_end_of_the_text_is_not_its_own_match(pick: Pick) -> None:
    index = index_of([5, 6, 7], pick=pick)
    assert found(index, [7]) == found(index, [6, 7]) == found(index, [5, 6, 7]) == []
    index.extend([])
    assert found(index, [7]) == []


def test_equals_come_in_the_order_that_was_picked() -> None:
    #       0  1  2  3  4  5  6  7  8  9  10
    text = [1, 8, 1, 9, 1, 8, 1, 7, 1, 9, 1]
    assert found(index_of(text, pick="recent"), [1]) == [9, 7, 5, 3, 1]
    assert found(index_of(text, pick="first"), [1]) == [1, 3, 5, 7, 9]
    assert found(index_of(text, pick="frequent"), [1]) == [9, 5, 3, 1, 7]  # 9 and 8 twice each, 7 once


def test_only_the_latest_places_vote() -> None:
    text = [1, 8] * 40 + [1, 9] * VOTERS + [1]
    assert found(index_of(text, pick="frequent"), [1])[0] == len(text) - 2
    text = [1, 8] * 40 + [1, 9] * (VOTERS // 2 - 1) + [1]
    assert text[found(index_of(text, pick="frequent"), [1])[0]] == 8


def test_a_break_is_never_crossed() -> None:
    index = index_of([1, 2, 3, BREAK, 4, 1, 2, BREAK])
    assert found(index, [3, 4]) == []
    assert found(index, [3]) == []  # nothing follows it in its own text
    assert found(index, [1, 2]) == [2]
    assert index.copy(2, 5) == [3]


def test_an_index_takes_at_most_what_it_was_made_for() -> None:
    with pytest.raises(IndexError):
        Index(range(1, 2), 3, "recent").extend([1, 2, 3, 4, 5])


def test_the_index_is_lean() -> None:
    """Bytes for each token with n-grams of five sizes, of which a dict of tuples would need more than 600."""
    rng = Random(0)
    text = [rng.randrange(1000) for _ in range(32_000)]
    tracemalloc.start()
    try:
        index = index_of(text, range(1, 6))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(index) == len(text)
    assert taken / len(text) < 90


# -- the drafter -------------------------------------------------------------------------------------------------------


def drafter(**options: Any) -> LookUp:
    return LookUp(PromptLookupOptions(**options), cast("Any", SimpleNamespace()))


def row(key: int, prompt: Sequence[int], written: Sequence[int] = (), new: int = 100, **settings: Any) -> Row:
    return Row(key, Request(tuple(prompt), new, **settings), [*prompt, *written], seed=0)


def batch(rows: Sequence[Row], lengths: Sequence[int]) -> Batch:
    sampling = Sampling.of([SamplingParams()] * len(rows), "cpu")
    return Batch(tuple(rows), tuple(lengths), torch.device("cpu"), sampling)


def drafted(draft: Draft, index: int = 0) -> list[tuple[int, ...]]:
    """The nodes of a row's draft, each as its path from the root."""
    count = int(draft.lengths[index])
    tokens = draft.tokens[index].tolist()
    parents = list(range(-1, count - 1)) if draft.parents is None else draft.parents[index].tolist()
    made: list[tuple[int, ...]] = []
    for node in range(count):
        before = made[parents[node]] if parents[node] >= 0 else ()
        made.append((*before, tokens[node]))
    return made


def decide(look_up: LookUp, asked: Batch, kept: Sequence[int]) -> None:
    """The round is over, and so many drafted tokens were kept in each row."""
    for row, count in zip(asked.rows, kept, strict=True):
        row.tokens += [0] * (count + 1)
    look_up.observe(asked, *[cast("Any", None)] * 3)


option_sets = st.builds(
    lambda low, more, **rest: PromptLookupOptions(min_ngram=low, max_ngram=low + more, adapt=False, **rest),
    st.integers(1, 3),
    st.integers(0, 3),
    pick=st.sampled_from(PICKS),
    branches=st.integers(1, 4),
)


@settings(max_examples=200, deadline=None)
@given(
    options=option_sets,
    rows=st.lists(st.tuples(texts, st.integers(0, 8)), min_size=1, max_size=4),
    ends=st.frozensets(few, max_size=1),
    data=st.data(),
)
def test_drafts_are_those_of_the_definition(
    options: PromptLookupOptions, rows: list[tuple[list[int], int]], ends: frozenset[int], data: st.DataObject
) -> None:
    """For uneven rows, each with its own limit, some of their tokens prompt and the others written since."""
    look_up = LookUp(options, cast("Any", SimpleNamespace()))
    made = []
    for key, (text, _) in enumerate(rows):
        prompt = data.draw(st.integers(1, len(text)))
        made.append(row(key, text[:prompt], text[prompt:], eos_token_ids=ends))
        if prompt > 1:
            middle = data.draw(st.integers(0, prompt - 1))
            look_up.prefill(made[-1], 0, middle, {})
            look_up.prefill(made[-1], middle, prompt - 1, {})
    draft = look_up.propose(batch(made, [limit for _, limit in rows]))
    for index, (text, limit) in enumerate(rows):
        expected = nodes(paths(text, [], limit, options, ends))
        assert drafted(draft, index) == expected
        assert draft.width >= len(expected)
    assert draft.tokens.dtype == draft.lengths.dtype == torch.long
    assert draft.probs is None


@settings(deadline=None)
@given(text=texts, earlier=st.lists(texts, max_size=4), options=option_sets, count=st.integers(1, 8))
def test_what_was_written_before_is_a_second_source(
    text: list[int], earlier: list[list[int]], options: PromptLookupOptions, count: int
) -> None:
    """Behind the row's own text, at equal length of match; the prompts of other requests are no part of it."""
    look_up = LookUp(options.model_copy(update={"remember": True}), cast("Any", SimpleNamespace()))
    for key, written in enumerate(earlier):
        look_up.release(row(key, [3, 2, 1], written))
    remembered = [token for written in earlier for token in (*written, BREAK)]
    draft = look_up.propose(batch([row(9, text)], [count]))
    assert drafted(draft) == nodes(paths(text, [remembered], count, options))


def test_the_longest_match_wins_over_a_later_shorter_one() -> None:
    text = [1, 2, 3, 50, 9, 2, 3, 60, 9, 3, 70, 1, 2, 3]
    for longest, expected in ((3, 50), (2, 60), (1, 70)):
        draft = drafter(max_ngram=longest).propose(batch([row(1, text)], [1]))
        assert drafted(draft) == [(expected,)]


def test_a_shortest_match_can_be_asked_for() -> None:
    draft = drafter(min_ngram=2).propose(batch([row(1, [1, 5, 2, 1])], [4]))
    assert draft.width == 0
    assert draft.lengths.tolist() == [0]


def test_a_token_that_ends_the_text_is_drafted_and_nothing_behind_it() -> None:
    text = [1, 2, 3, 4, 5, 1]
    assert drafted(drafter().propose(batch([row(1, text, eos_token_ids=frozenset({3}))], [4])))[-1] == (2, 3)
    assert drafted(drafter().propose(batch([row(1, text)], [4])))[-1] == (2, 3, 4, 5)


def test_rows_end_by_their_own_tokens() -> None:
    rows = [row(1, [1, 2, 3, 1], eos_token_ids=frozenset({2})), row(2, [1, 2, 3, 1], eos_token_ids=frozenset({3}))]
    assert drafter().propose(batch(rows, [4, 4])).lengths.tolist() == [1, 2]


def test_a_chain_has_no_parents_and_a_tree_merges_what_agrees() -> None:
    text = [1, 2, 3, 4, 1, 2, 5, 6, 1]
    chain = drafter(branches=1).propose(batch([row(1, text)], [3]))
    assert chain.parents is None
    assert drafted(chain) == [(2,), (2, 5), (2, 5, 6)]
    tree = drafter(branches=2).propose(batch([row(1, text), row(2, [7])], [3, 3]))
    assert drafted(tree) == [(2,), (2, 5), (2, 5, 6), (2, 3), (2, 3, 4)]
    assert tree.parents is not None
    assert tree.parents.tolist() == [[-1, 0, 1, 0, 3], [-1] * 5]
    assert tree.lengths.tolist() == [5, 0]


def test_a_look_up_tries_a_bounded_number_of_places() -> None:
    for again, expected in ((TRIED - 1, [(8,), (9,)]), (TRIED, [(8,)])):
        text = [1, 9] + [1, 8] * again + [1]
        assert drafted(drafter(branches=2, max_ngram=1).propose(batch([row(1, text)], [1]))) == expected


def test_what_comes_round_is_drafted_to_come_round_again() -> None:
    assert drafted(drafter().propose(batch([row(1, [9, 1, 2, 1, 2])], [4])))[-1] == (1, 2, 1, 2)


# -- rows that come and go ---------------------------------------------------------------------------------------------


def test_a_row_that_left_leaves_nothing_behind() -> None:
    """Not even for a request that is given its id, and no index that is never dropped."""
    look_up = drafter()
    first = row(1, [1, 2, 3, 1])
    look_up.propose(batch([first], [4]))
    look_up.release(first)
    assert not look_up.indexes
    assert look_up.propose(batch([row(1, [4, 2])], [4])).width == 0


def test_a_row_that_was_never_drafted_for_may_leave() -> None:
    drafter().release(row(1, [1]))


def test_a_row_that_did_not_draft_for_a_while_catches_up() -> None:
    look_up, text = drafter(), row(1, [1, 2])
    look_up.propose(batch([text], [0]))
    text.tokens += [3, 4, 1]
    look_up.propose(batch([text], [0]))
    text.tokens += [2]
    assert drafted(look_up.propose(batch([text], [2])))[-1] == (3, 4)


def test_requests_that_do_not_speculate_are_not_remembered() -> None:
    look_up = drafter(remember=True)
    look_up.release(row(1, [9], [1, 2, 3], speculate=False))
    assert look_up.propose(batch([row(2, [1])], [4])).width == 0
    look_up.release(row(3, [9], [1, 2, 3]))
    assert drafted(look_up.propose(batch([row(4, [1])], [4])))[-1] == (2, 3)


def test_of_what_is_remembered_the_newer_comes_first_and_the_older_still_counts() -> None:
    look_up = drafter(remember=True, corpus_tokens=64, max_ngram=1)
    look_up.release(row(1, [9], [1, 2, 3, *[0] * 20]))
    look_up.release(row(2, [9], [1, 4, 5, *[0] * 20]))
    assert look_up.memory is not None
    assert len(look_up.memory.indexes) == 2
    assert drafted(look_up.propose(batch([row(3, [1])], [2])))[-1] == (4, 5)
    assert drafted(look_up.propose(batch([row(4, [2])], [1])))[-1] == (3,)


# -- how much is drafted -----------------------------------------------------------------------------------------------


def lengths_of(look_up: LookUp, texts: Sequence[Row], kept: Sequence[Sequence[int]], most: int = 16) -> list[list[int]]:
    """How much is drafted in each round, if so much is kept."""
    seen = []
    for counts in kept:
        asked = batch(texts, [most] * len(texts))
        seen.append(look_up.propose(asked).lengths.tolist())
        decide(look_up, asked, counts)
    return seen


def test_a_row_drafts_more_after_full_acceptance_and_less_after_any_other() -> None:
    rows = [row(1, [0] * 4), row(2, [0] * 4)]  # endless repetition: as much is found as is asked for
    seen = lengths_of(drafter(), rows, [(4, 0), (6, 2), (8, 1), (9, 0), (0, 0), (0, 1)])
    assert [first for first, _ in seen] == [4, 6, 8, 10, 9, 8]
    assert [second for _, second in seen] == [4, 3, 2, 1, 1, 1]


def test_no_row_drafts_more_than_it_may() -> None:
    text = [row(1, [0] * 4)]
    assert lengths_of(drafter(), text, [(4,), (6,), (7,)], most=7) == [[4], [6], [7]]
    assert lengths_of(drafter(adapt=False), text, [(0,), (0,)], most=7) == [[7], [7]]


def test_a_draft_that_was_cut_short_does_not_shorten_the_next() -> None:
    look_up, text = drafter(), row(1, [0] * 4)
    for most, kept in ((16, 4), (16, 6), (2, 2), (16, 0)):
        asked = batch([text], [most])
        draft = look_up.propose(asked)
        decide(look_up, asked, [kept])
    assert draft.lengths.tolist() == [8]


def test_a_round_without_a_match_teaches_nothing() -> None:
    look_up, text = drafter(), row(1, [1])
    for _ in range(3):
        asked = batch([text], [16])
        assert look_up.propose(asked).width == 0
        text.tokens.append(len(text.tokens) + 100)
        look_up.observe(asked, *[cast("Any", None)] * 3)
    text.tokens += [0] * 4
    assert lengths_of(look_up, [text], [(0,), (0,), (0,), (0,)]) == [[4], [3], [2], [1]]
    text.tokens.append(99)
    assert lengths_of(look_up, [text], [(0,)]) == [[0]]
    assert lengths_of(look_up, [text], [(0,)]) == [[1]]


def test_a_round_in_which_nobody_was_asked_teaches_nothing() -> None:
    look_up, text = drafter(), row(1, [0] * 4)
    lengths_of(look_up, [text], [(4,)])
    for _ in range(3):
        decide(look_up, batch([text], [0]), [0])
    assert lengths_of(look_up, [text], [(0,)]) == [[6]]


def test_a_row_starts_afresh_under_an_old_id() -> None:
    look_up, text = drafter(), row(1, [0] * 4)
    lengths_of(look_up, [text], [(4,), (6,)])
    look_up.release(text)
    assert lengths_of(look_up, [row(1, [0] * 4)], [(0,)]) == [[4]]


# -- what is expected --------------------------------------------------------------------------------------------------


def expectation(look_up: LookUp, text: Row, came: Sequence[int]) -> float:
    """What is expected of the row now; then these tokens come, without a draft."""
    asked = batch([text], [0])
    (expected,) = look_up.expected_acceptance([text])
    text.tokens += came
    look_up.observe(asked, *[cast("Any", None)] * 3)
    return expected


def test_nothing_is_expected_where_nothing_is_found() -> None:
    look_up = drafter()
    assert look_up.expected_acceptance([row(1, [1, 2, 3]), row(2, [1, 2, 1])]) == [0.0, PRIOR[0]]


def test_more_is_expected_of_a_longer_match_also_beyond_the_n_grams_that_are_indexed() -> None:
    page = list(range(20))
    texts = [row(size, [*page, 99, *page[10 - size : 10]]) for size in range(1, 11)]
    expected = drafter(max_ngram=3).expected_acceptance(texts)
    assert expected == [PRIOR[i] for i in (0, 1, 2, 3, 4, 4, 4, 4, 5, 5)]


def test_a_look_up_shows_whether_it_was_right_though_nobody_drafted() -> None:
    """Copying that begins late is expected from its first tokens on; what is wrong again and again is not."""
    look_up, text = drafter(), row(1, [5, 6])
    wrong = []
    for other in range(100, 112):  # always the same token, and never what came after it before
        wrong.append(expectation(look_up, text, [5, other]))
        text.tokens.pop()
        text.tokens += [other, 5]
    assert wrong[0] == 0.0
    assert wrong[1] == PRIOR[0]
    assert wrong[-1] < 0.1
    page = list(range(200, 220))
    text.tokens += [*page, 7]
    copied = [expectation(look_up, text, [token]) for token in page]
    assert copied[0] == 0.0
    assert copied[2] >= PRIOR[1]
    assert min(copied[6:]) >= PRIOR[4]
    assert copied[-1] > 0.94


def test_what_was_found_is_compared_with_all_that_came_up_to_where_they_part() -> None:
    look_up, text = drafter(), row(1, [1, 2, 3, 4, 9, 1])
    assert expectation(look_up, text, [2, 3, 7]) == PRIOR[0]  # two right, then one wrong
    assert look_up.records[1].expected(1) == pytest.approx((MEMORY * WEIGHT * PRIOR[0] + 2) / (MEMORY * WEIGHT + 3))


def test_whoever_asked_chooses_the_length() -> None:
    """Unasked, a row's own lengths grow from four."""
    look_up, text = drafter(), row(1, [0] * 4)
    assert look_up.propose(batch([text], [16])).lengths.tolist() == [4]
    look_up.expected_acceptance([text])
    assert look_up.propose(batch([text], [16])).lengths.tolist() == [16]


def test_what_is_expected_is_forgotten_with_the_row() -> None:
    look_up, text = drafter(), row(1, [1, 2, 3, 4, 9, 1])
    expectation(look_up, text, [7])
    look_up.expected_acceptance([text])
    look_up.release(text)
    assert not look_up.records
    assert not look_up.first
