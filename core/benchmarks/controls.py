"""How many texts differ from plain decoding under each control: our chains and trees, and transformers' assistance.

    python core/benchmarks/controls.py --cases 36

Greedy, in float32, on a tiny random model. Ours draft the true continuation with every fifth token spoilt. transformers
is assisted by a copy of the model itself and by prompt look-up. Each side is compared with its own plain decoding.
"""

from __future__ import annotations

import argparse
import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList, StopStringCriteria
from transformers.generation import logits_process as theirs

from fastllm_core import Controls, Request
from fastllm_core.testing import Branching, Oracle, tiny_model, tiny_tokenizer
from fastllm_core.testing.engines import decode, make_engine
from fastllm_core.testing.processors import Alternating, Parity

V, NEW = 64, 24
TOKENIZER = tiny_tokenizer(V)
PLAIN, LOOKUP, ASSISTANT = "plain", "look-up", "assistant"


@dataclass(frozen=True)
class Case:
    """A prompt and what is asked of its continuation. Processors and criteria are made anew for each text."""

    prompt: tuple[int, ...]
    new: int = NEW
    eos: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    controls: Controls = field(default_factory=Controls)
    settings: dict[str, Any] = field(default_factory=dict)
    """The same controls, as transformers calls them."""
    processors: Callable[[], Sequence[Any]] = lambda: ()
    criteria: Callable[[], Sequence[Any]] = lambda: ()

    def request(self) -> Request:
        """For our engine."""
        controls = replace(self.controls, processors=tuple(self.processors()))
        return Request(
            self.prompt, self.new, eos_token_ids=self.eos, stop=self.stop, controls=controls,
            stopping_criteria=tuple(self.criteria()),
        )  # fmt: skip


class Counting:
    """Every call moves the scores by one token more. What counts cannot be copied."""

    def __init__(self) -> None:
        self.calls = itertools.count(1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, rolled."""
        return scores.roll(next(self.calls) % 5, -1)


def ends_at(length: int) -> list[Any]:
    """A criterion that ends texts of so many tokens."""
    return [lambda ids, scores: torch.tensor([ids.shape[1] >= length])]


def prompts(count: int) -> list[tuple[int, ...]]:
    """Random ones that repeat themselves, so that look-ups find something."""
    rng = random.Random(7)
    pieces = [tuple(rng.randrange(1, V) for _ in range(rng.randint(2, 5))) for _ in range(count)]
    return [(piece * 4)[: rng.randint(4, 14)] for piece in pieces]


def situations(model: PreTrainedModel, other: PreTrainedModel, count: int) -> dict[str, list[Case]]:
    """Cases by the control that they try."""
    asked = prompts(count)
    texts = [decode(make_engine(model), [Request(prompt, NEW)])[0] for prompt in asked]
    decoded: Any = TOKENIZER.decode
    at = [index % (NEW - 2) for index in range(count)]  # every offset inside rounds of five
    made: dict[str, list[Case]] = {
        "stop string": [
            Case(p, stop=(decoded(t[i : i + 2]),)) for p, t, i in zip(asked, texts, at, strict=True)
        ],
        "end token": [Case(p, eos=frozenset({t[i]})) for p, t, i in zip(asked, texts, at, strict=True)],
        "limit": [Case(p, 1 + i) for p, i in zip(asked, at, strict=True)],
        "stopping criterion": [
            Case(p, criteria=partial(ends_at, len(p) + 1 + i)) for p, i in zip(asked, at, strict=True)
        ],
    }  # fmt: skip
    words = [[token] for token in range(30, 40)] + [[token, token + 1] for token in range(30)]
    bias = {(5,): -3.0, (6,): 2.0, (8, 9): 4.0}
    same: dict[str, tuple[Controls, dict[str, Any]]] = {
        "repetition penalty": (Controls(repetition_penalty=1.5), {"repetition_penalty": 1.5}),
        "no repeated n-gram": (Controls(no_repeat_ngram_size=2), {"no_repeat_ngram_size": 2}),
        "bad words": (Controls(bad_words=tuple(map(tuple, words))), {"bad_words_ids": words}),
        "logit bias": (Controls(sequence_bias=tuple(bias.items())), {"sequence_bias": bias}),
    }
    for name, (controls, settings) in same.items():
        made[name] = [Case(prompt, controls=controls, settings=settings) for prompt in asked]
    ends = frozenset(range(0, V, 6))
    made["least length"] = [
        Case(p, eos=ends, controls=Controls(min_new_tokens=3 + i % 9), settings={"min_new_tokens": 3 + i % 9})
        for i, p in enumerate(asked)
    ]
    called: dict[str, Callable[[], Sequence[Any]]] = {
        "pure processor": lambda: [Parity()],
        "snapshotable processor": lambda: [Alternating()],
        "stateful processor": lambda: [Counting()],
        "guidance": lambda: [theirs.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, other)],
    }
    for name, processors in called.items():
        made[name] = [Case(prompt, processors=processors) for prompt in asked]
    return made


def ours(model: PreTrainedModel, cases: Sequence[Case], *, tree: bool) -> int:
    """Texts that differ from plain decoding's."""
    wrong = 0
    plain = make_engine(model, tokenizer=TOKENIZER)
    for case in cases:
        text = decode(plain, [case.request()])[0]
        told = {case.prompt: [*case.prompt, *text]}
        oracle = Oracle(told, lambda i: i % 5 == 4, V)
        drafter = Branching(oracle.guess, branches=2, vocab_size=V) if tree else oracle
        wrong += decode(make_engine(model, drafter, tokenizer=TOKENIZER), [case.request()])[0] != text
    return wrong


def assisted(model: PreTrainedModel, assistant: PreTrainedModel, cases: Sequence[Case], how: str) -> int | str:
    """The same of transformers; what it says where it refuses or fails."""
    wrong = 0
    for case in cases:
        try:
            wrong += generated(model, assistant, case, how) != generated(model, assistant, case, PLAIN)
        except Exception as error:
            return type(error).__name__
    return wrong


def generated(model: PreTrainedModel, assistant: PreTrainedModel, case: Case, how: str) -> list[int]:
    """What `generate` writes."""
    ids = torch.tensor([case.prompt])
    helped: dict[str, Any] = {
        PLAIN: {}, LOOKUP: {"prompt_lookup_num_tokens": 5}, ASSISTANT: {"assistant_model": assistant},
    }[how]  # fmt: skip
    criteria = [*case.criteria(), *([StopStringCriteria(TOKENIZER, list(case.stop))] if case.stop else [])]
    answer: Any = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=case.new,
        pad_token_id=0,
        eos_token_id=sorted(case.eos) or None,
        logits_processor=LogitsProcessorList(case.processors()),  # type: ignore[arg-type]
        stopping_criteria=StoppingCriteriaList(criteria),
        **case.settings,
        **helped,
    )
    return answer[0, len(case.prompt) :].tolist()  # type: ignore[no-any-return]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=36, help="texts for each control")
    parser.add_argument("--only", nargs="*", metavar="CONTROL", help="rows of the table; all by default")
    asked = parser.parse_args()
    count = asked.cases
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    model, same = (tiny_model(seed=3, num_hidden_layers=2) for _ in range(2))
    other = tiny_model(seed=4, num_hidden_layers=2)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; {count} texts for each control\n")
    print("| control | our chain | our tree | transformers, assistant | transformers, look-up |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, cases in situations(model, other, count).items():
        if asked.only and name not in asked.only:
            continue
        mine = [ours(model, cases, tree=tree) for tree in (False, True)]
        others = [assisted(model, same, cases, how) for how in (ASSISTANT, LOOKUP)]
        print(f"| {name} | {' | '.join(map(str, [*mine, *others]))} |", flush=True)


if __name__ == "__main__":
    main()
