"""Under controls a sampled text has the law of the processed target: every draft and every uniform is enumerated.

What the law ought to be comes from transformers' own processors, one context at a time.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from fastllm_core import Controls
from fastllm_core.acceptor import ExactAcceptor, Rule
from fastllm_core.penalties import Paths
from fastllm_core.protocols import Proposal
from fastllm_core.randomness import Purpose
from fastllm_core.testing.enumeration import PROMPT, Borders, Enumeration, TableTree
from fastllm_core.testing.laws import Table, always, distance, varied
from fastllm_core.testing.processors import Parity

P, Q = varied(0), always(1 / 6, 1 / 3, 1 / 2)
CHAIN, TREE = (-1, 0), (-1, -1, 0)
BIAS = {(1,): 0.7, (0, 0): -1.1, (1, 1): 0.4}

NOISE = 1e-6
"""Processors compute in float32, and numbers that differ by less are taken for one border."""

Case = tuple[Controls, Callable[[], list[Any]]]
CASES: dict[str, Case] = {
    "penalties": (Controls(repetition_penalty=1.6), lambda: [RepetitionPenaltyLogitsProcessor(1.6)]),
    "repeats": (Controls(no_repeat_ngram_size=2), lambda: [NoRepeatNGramLogitsProcessor(2)]),
    "words": (
        Controls(bad_words=((1, 1), (0, 0, 1))),
        lambda: [NoBadWordsLogitsProcessor([[1, 1], [0, 0, 1]])],
    ),
    "biases": (Controls(sequence_bias=tuple(BIAS.items())), lambda: [SequenceBiasLogitsProcessor(BIAS)]),
    "a processor": (Controls(processors=(Parity(0.8),)), lambda: [Parity(0.8)]),
    "a penalty and a processor": (
        Controls(repetition_penalty=1.3, processors=(Parity(0.5),)),
        lambda: [RepetitionPenaltyLogitsProcessor(1.3), Parity(0.5)],
    ),
}


def processed(p: Table, processors: Sequence[Any]) -> Table:
    """What transformers' processors make of a table."""

    @cache
    def table(context: tuple[int, ...]) -> list[float]:
        scores = torch.tensor([p(context)]).log()
        scores = LogitsProcessorList(processors)(torch.tensor([[*PROMPT, *context]]), scores)  # type: ignore[arg-type]
        return scores.double().softmax(-1)[0].tolist()  # type: ignore[no-any-return]

    return table


def borders(p: Table, q: Table, count: int, siblings: int, *, once_each: bool) -> Borders:
    """Everything that a number may be compared with, in any context, under *match* and *rejection*."""
    found: dict[Purpose, set[float]] = defaultdict(set)

    def level(left: Sequence[float], drawn: Sequence[float], more: int) -> None:
        """The next of some siblings, where earlier ones have left this much of p and of q."""
        found[Purpose.EXTRA] |= set(itertools.accumulate(left))
        if not more:
            return
        found[Purpose.DRAFT] |= set(itertools.accumulate(drawn))
        found[Purpose.ACCEPT] |= {a / b for a, b in zip(left, drawn, strict=True) if b}
        rest = [max(a - b, 0.0) for a, b in zip(left, drawn, strict=True)]
        after = [a / sum(rest) for a in rest] if sum(rest) > 1e-9 else left
        for token in range(len(drawn)) if once_each else (None,):
            again = [0.0 if i == token else b for i, b in enumerate(drawn)]
            if sum(again):
                level(after, [b / sum(again) for b in again] if once_each else drawn, more - 1)

    for length in range(count):
        for context in itertools.product(range(len(p(()))), repeat=length):
            level(p(context), q(context), siblings)
    made = {purpose: sorted({round(x, 7) for x in xs if 1e-6 < x < 1 - 1e-6}) for purpose, xs in found.items()}
    return {**made, Purpose.TARGET: made[Purpose.EXTRA]}


RULES: dict[str, tuple[Proposal, Sequence[int], Rule]] = {
    "match, a chain": (Proposal.ONE_HOT, CHAIN, "auto"),
    "match, a tree": (Proposal.ONE_HOT, TREE, "auto"),
    "rejection, a chain": (Proposal.SAMPLED, CHAIN, "auto"),
    "rejection, a tree of independent draws": (Proposal.INDEPENDENT, TREE, "auto"),
    "rejection, a tree without replacement": (Proposal.WITHOUT_REPLACEMENT, TREE, "auto"),
    "block, one level at a time": (Proposal.SAMPLED, CHAIN, "block"),
}


def enumeration(case: str, rule: str, p: Table = P, q: Table = Q, count: int = 3) -> tuple[Table, Enumeration]:
    """The law that ought to be, and the one that is."""
    controls, processors = CASES[case]
    proposal, parents, name = RULES[rule]
    wanted = processed(p, processors())
    once_each = proposal is Proposal.WITHOUT_REPLACEMENT
    siblings = 0 if rule.startswith("match") else 2 if parents is TREE else 1
    edges = borders(wanted, q, count, siblings, once_each=once_each)
    drafter = TableTree(q, parents, proposal)
    return wanted, Enumeration(p, drafter, ExactAcceptor(proposal, name), edges, count, 2, controls=controls)


COIN, FALSE_COIN = varied(0, ((1, 3), (3, 1), (2, 2))), always(3 / 4, 1 / 4)
"""Every level of a walk has its own numbers, so with few possible values there are few cells."""


@pytest.mark.parametrize("rule", RULES)
def test_the_law_is_that_of_the_processed_target(rule: str) -> None:
    wanted, enumerated = enumeration("a processor", rule, COIN, FALSE_COIN, count=2)
    assert distance(wanted, enumerated.law()) < NOISE


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("block")])
def test_the_law_is_that_of_the_penalised_target(rule: str) -> None:
    """A block without processors is judged as a whole: test_acceptance_rounds enumerates that, whatever p is."""
    wanted, enumerated = enumeration("penalties", rule, COIN, FALSE_COIN, count=2)
    assert distance(wanted, enumerated.law()) < NOISE


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.startswith("rejection")])
@pytest.mark.parametrize("case", ["words", "biases", "a penalty and a processor"])
def test_the_law_under_other_controls(case: str, rule: str) -> None:
    wanted, enumerated = enumeration(case, rule, COIN, FALSE_COIN, count=2)
    assert distance(wanted, enumerated.law()) < NOISE


@pytest.mark.slow
@pytest.mark.parametrize("case", ["penalties", "words", "biases"])  # of two tokens a repeated pair may forbid both
def test_rejection_keeps_the_law_over_three_tokens(case: str) -> None:
    wanted, enumerated = enumeration(case, "rejection, a chain", COIN, FALSE_COIN)
    assert distance(wanted, enumerated.law()) < NOISE


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["rejection, a chain", "block, one level at a time"])
def test_a_walk_keeps_the_law_over_three_tokens(rule: str) -> None:
    wanted, enumerated = enumeration("a processor", rule, always(1 / 2, 1 / 2), FALSE_COIN)
    assert distance(wanted, enumerated.law()) < NOISE


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["match, a chain", "match, a tree"])
@pytest.mark.parametrize("case", CASES)
def test_match_keeps_the_law_over_three_tokens(case: str, rule: str) -> None:
    wanted, enumerated = enumeration(case, rule)
    assert distance(wanted, enumerated.law()) < NOISE


@pytest.mark.parametrize("case", ["penalties", "repeats"])
def test_the_roots_prefix_for_every_node_would_be_another_law(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would be to count once a round."""
    right: Callable[..., Paths] = Paths.of

    def once(*arguments: Any) -> Paths:
        paths = right(*arguments)
        return Paths(paths.tokens, torch.zeros_like(paths.on), paths.roots)

    monkeypatch.setattr(Paths, "of", once)
    wanted, enumerated = enumeration(case, "match, a chain")
    assert distance(wanted, enumerated.law()) > 0.01
