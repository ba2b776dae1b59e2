"""Self-speculation against plain decoding, measured in turn on real texts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from fastllm_core import load

from ..skipset import SkipSet

if TYPE_CHECKING:
    from fastllm_core import Config, Pipeline


@dataclass(frozen=True, slots=True)
class Measured:
    """A set's figures in a race; speeds are greedy, one text after the other."""

    ratio: float
    """Tokens per second against plain decoding's: the median of the repeats."""
    low: float
    high: float
    """The smallest and largest ratio of a repeat."""
    tokens_per_s: float
    plain_tokens_per_s: float
    tokens_per_round: float
    """MAT."""
    acceptance: float
    """Accepted drafts, as a share of those drafted."""
    draft_cost: float
    """Seconds of a drafted token against those of a plain one, in this race."""
    same: int
    texts: int
    """How many of how many texts are plain decoding's."""
    forwards: str
    """How they ran: "compiled", "eager", ..."""

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


@dataclass(slots=True)
class Lap:
    """One pipeline's share of a repeat."""

    seconds: float = 0.0
    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_seconds: float = 0.0

    def add(self, report: Any) -> None:
        """Count a text; the prompt's reading is the same for all and left out."""
        self.seconds += report.seconds - report.time["prefill"]
        self.tokens += report.tokens
        self.rounds += report.rounds
        self.drafted += report.drafted
        self.accepted += report.accepted
        self.draft_seconds += report.time["draft"]

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)


class Race:
    """Runs skip sets beside plain decoding, on one copy of the weights."""

    def __init__(self, plain: Pipeline, prompts: Sequence[tuple[int, ...]], new_tokens: int, repeats: int) -> None:
        """plain: the pipeline that holds the model.  prompts: token ids."""
        self.plain, self.prompts, self.new_tokens, self.repeats = plain, prompts, new_tokens, repeats

    def run(self, entries: Sequence[tuple[SkipSet, int]]) -> list[Measured]:
        """Measure some sets, each with its draft length. Everybody takes turns, prompt by prompt."""
        with ExitStack() as stack:
            rivals = [stack.enter_context(rival(self.plain, *entry)) for entry in entries]
            everyone = [self.plain, *rivals]
            texts = [[self._write(each, prompt) for prompt in self.prompts] for each in everyone]  # warms up as well
            same = [sum(map(_equal, theirs, texts[0])) for theirs in texts]
            laps = [self._repeat(everyone) for _ in range(self.repeats)]
            forwards = [each.backend.summary for each in everyone]
        return [self._measured(laps, index, same[index], forwards[index]) for index in range(1, len(everyone))]

    def ratio(self, skipped: SkipSet, length: int) -> float:
        """One set's speed against plain decoding's."""
        return self.run([(skipped, length)])[0].ratio

    def _repeat(self, everyone: Sequence[Pipeline]) -> list[Lap]:
        laps = [Lap() for _ in everyone]
        for turn, prompt in enumerate(self.prompts):
            for step in range(len(everyone)):
                index = (turn + step) % len(everyone)  # nobody always follows the same neighbour
                laps[index].add(self._write(everyone[index], prompt).report)
        return laps

    def _write(self, pipeline: Pipeline, prompt: tuple[int, ...]) -> Any:
        return pipeline.generate(list(prompt), max_new_tokens=self.new_tokens, temperature=0.0)

    def _measured(self, laps: Sequence[Sequence[Lap]], index: int, same: int, forwards: str) -> Measured:
        ratios = [lap[index].speed / lap[0].speed for lap in laps]
        mine = [lap[index] for lap in laps]
        drafted = max(sum(lap.drafted for lap in mine), 1)
        plain = median(lap[0].speed for lap in laps)
        return Measured(
            ratio=median(ratios),
            low=min(ratios),
            high=max(ratios),
            tokens_per_s=median(lap.speed for lap in mine),
            plain_tokens_per_s=plain,
            tokens_per_round=sum(lap.tokens for lap in mine) / max(sum(lap.rounds for lap in mine), 1),
            acceptance=sum(lap.accepted for lap in mine) / drafted,
            draft_cost=median(lap.draft_seconds / max(lap.drafted, 1) for lap in mine) * plain,
            same=same,
            texts=len(self.prompts),
            forwards=forwards,
        )


def rival(plain: Pipeline, skipped: SkipSet, length: int) -> Pipeline:
    """The method with a set, always drafting as many tokens, on the weights of a pipeline that decodes plainly."""
    options = {"skip_attention": sorted(skipped.attention), "skip_mlp": sorted(skipped.mlp)}
    chosen: Config = plain.config.model_copy(
        update={
            "method": "self-speculative",
            "options": {"self-speculative": options},
            "draft": plain.config.draft.model_copy(update={"controller": "fixed", "length": length}),
        }
    )
    return load(plain.target.model, config=chosen, tokenizer=plain.target.tokenizer)


def _equal(mine: Any, theirs: Any) -> bool:
    return bool(mine.token_ids == theirs.token_ids)
