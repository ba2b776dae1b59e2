"""Checks of what is written: greedily the same tokens as plain decoding, wherever a text may end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...controls import Controls
from ...programs import ProgramFolder
from ...request import Request
from .. import situations
from ..processors import AfterSum, Alternating, Parity, Rolling
from ..situations import drafters, expect_same, greedy, plain_texts, prompts, sampled
from ..subject import Subject, TinyTarget, Toy
from ..unrolled import Unrolled

LENGTHS = (1, 5)
"""Draft lengths that are tried."""
CONTROLS: Final[tuple[Callable[[], dict[str, Any]], ...]] = (
    dict,
    lambda: {"controls": Controls(repetition_penalty=1.4)},
    lambda: {"controls": Controls(frequency_penalty=1.2, presence_penalty=0.5, no_repeat_ngram_size=2)},
    lambda: {"controls": Controls(sequence_bias=(((5,), 2.0), ((3, 9), -4.0)), bad_words=((7,), (8, 1)))},
    lambda: {"controls": Controls(min_new_tokens=9), "eos_token_ids": frozenset(range(0, 64, 3))},
    lambda: {"controls": Controls(processors=(Parity(),))},
    lambda: {"controls": Controls(repetition_penalty=1.2, processors=(Alternating(), Rolling()))},
    lambda: {"controls": Controls(processors=(Rolling(),)), "stopping_criteria": (AfterSum(400),)},
)
"""Fields of requests that change logits or ends."""


def check_greedy_text(subject: Subject) -> None:
    """Greedy text is plain decoding's, token for token: alone, in ragged batches, with rows joining late."""
    target = subject.target()
    requests = greedy(prompts(50, target.vocab_size), 24)
    expected = plain_texts(subject, target, requests)
    for toy in drafters(subject, requests, expected):
        for length in LENGTHS:
            for rows, every, some in ((16, 0, 50), (4, 2, 16), (1, 0, 6)):
                config = {"draft.length": length, "engine.max_rows": rows}
                with subject.pipeline(target, config=config, beside=toy) as pipeline:
                    texts = situations.texts(pipeline, requests[:some], every=every)
                where = f"draft.length {length}, {rows} rows{', joining late' if every else ''}{_beside(toy)}"
                expect_same(texts, expected[:some], requests[:some], where)


def check_mixed_attention(subject: Subject) -> None:
    """Where layers differ (sliding and full attention), texts longer than the window are plain decoding's."""
    target = subject.target(
        "gemma3_text",
        num_hidden_layers=5,
        layer_types=["sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"],
        sliding_window=8,
        head_dim=8,
        tie_word_embeddings=False,  # or the last token outweighs what attention says
    )
    requests = greedy(prompts(8, target.vocab_size, longest=30), 24)
    _compare(subject, target, requests, {"engine.max_rows": 4})


def check_long_prompt(subject: Subject) -> None:
    """A prompt that is read in several chunks, beside rows that already decode."""
    target = subject.target()
    lengths = (1, 150, 33, 64)
    pieces = prompts(len(lengths), target.vocab_size)
    requests = greedy([(piece * length)[:length] for piece, length in zip(pieces, lengths, strict=True)], 16)
    _compare(subject, target, requests, {"engine.prefill_chunk": 32, "engine.max_rows": 4}, every=1)


def check_compiled_text(subject: Subject) -> None:
    """With compiled forwards the text is the same, and every forward of the method has a program.

    Programs run unrolled, as Python: a forward with a shape or a cache that no program can take is found all the same.
    """
    target = subject.target()
    requests = greedy(prompts(8, target.vocab_size), 24)
    expected = plain_texts(subject, target, requests)
    with tempfile.TemporaryDirectory() as folder:
        for toy in drafters(subject, requests, expected):
            for rows, every in ((4, 2), (1, 0)):
                backend = Unrolled(ProgramFolder(Path(folder) / "programs"), compiles=True)
                config = {"engine.max_rows": rows}
                with subject.pipeline(target, config=config, beside=toy, backend=backend) as pipeline:
                    texts = situations.texts(pipeline, requests, every=every)
                expect_same(texts, expected, requests, f"compiled forwards, {rows} rows{_beside(toy)}")
                assert not backend.missing, f"no program serves these forwards: {', '.join(backend.missing)}"


def check_ends(subject: Subject) -> None:
    """End tokens at every place, limits, and stop strings at every offset end a text where plain decoding ends."""
    target = subject.target()
    prompt = prompts(2, target.vocab_size)[1]
    whole = plain_texts(subject, target, greedy([prompt], 16))[0]
    ends = [Request(prompt, 16, eos_token_ids=frozenset({token})) for token in dict.fromkeys(whole)]
    limits = [Request(prompt, count) for count in range(1, 13)]
    decoded: Any = target.tokenizer.decode
    stops = [Request(prompt, 16, stop=(decoded(whole[at : at + 2]),)) for at in range(len(whole) - 1)]
    for requests, what in ((ends, "an end token"), (limits, "a limit"), (stops, "a stop string")):
        expected = plain_texts(subject, target, requests)
        for toy in drafters(subject, greedy([prompt], 16), [whole]):
            with subject.pipeline(target, beside=toy) as pipeline:
                expect_same(situations.texts(pipeline, requests), expected, requests, f"{what}{_beside(toy)}")


def check_mixed_requests(subject: Subject) -> None:
    """Greedy rows keep their text beside rows that sample, and beside rows that do not speculate."""
    target = subject.target()
    asked = prompts(9, target.vocab_size)
    still = greedy(asked[:3], 20)
    plainly = [Request(prompt, 20, speculate=False) for prompt in asked[3:6]]
    requests = [*still, *plainly]
    expected = plain_texts(subject, target, requests)
    for toy in drafters(subject, requests, expected):
        with subject.pipeline(target, beside=toy) as pipeline:
            others = sampled(asked[6:], 20) if toy is None else []
            answers = situations.texts(pipeline, [*requests, *others], every=1)
        expect_same(answers[: len(requests)], expected, requests, f"in a mixed batch{_beside(toy)}")


def _compare(
    subject: Subject, target: TinyTarget, requests: list[Request], config: dict[str, Any], every: int = 0
) -> None:
    expected = plain_texts(subject, target, requests)
    for toy in drafters(subject, requests, expected):
        with subject.pipeline(target, config=config, beside=toy) as pipeline:
            expect_same(situations.texts(pipeline, requests, every=every), expected, requests, f"greedy{_beside(toy)}")


def _beside(toy: Toy | None) -> str:
    return f", {toy.label}" if toy else ""


def check_controls(subject: Subject) -> None:
    """Under penalties, logits processors and stopping criteria, a state among them, text is plain decoding's.

    Every row has another control, so that rows with and without them share rounds.
    """
    target = subject.target()
    asked = prompts(len(CONTROLS) * 2, target.vocab_size)

    def requests() -> list[Request]:  # each time with processors that have seen nothing
        fields = [make() for make in (*CONTROLS, *CONTROLS)]
        return [Request(prompt, 20, **field) for prompt, field in zip(asked, fields, strict=True)]

    expected = plain_texts(subject, target, requests())
    for toy in drafters(subject, requests(), expected):
        for rows in (4, 1):
            with subject.pipeline(target, config={"engine.max_rows": rows}, beside=toy) as pipeline:
                texts = situations.texts(pipeline, requests(), every=2 if rows > 1 else 0)
            expect_same(texts, expected, requests(), f"under controls, {rows} rows{_beside(toy)}")
