"""A model that copies: the demo model, taught to answer in the words of its prompt.

    python plugins/prompt-lookup/benchmarks/copying.py --data DATA --output copying --minutes 30

The small story models go on with a story of their own where another model would quote, so they cannot show what prompt
look-up gains. This goes on with the training of `demo` on tasks like those of the suite `grounded`, on other texts,
and writes `OUTPUT/small` (6M parameters) and `OUTPUT/grown` (the shape of `demo-100m`, computing the same).

DATA: a folder with stories.txt.xz, books.txt.xz and python_code.txt.xz.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

import grounded
import torch
from grounded import Task
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from fastllm_plugin_bench.suite import load_suite
from fastllm_plugin_demo.build import COPIED, build, load
from fastllm_plugin_demo.models import DEMO, DEMO_100M

SHARES: Final = {"stories": 0.5, "books": 0.3, "code": 0.2}
PASSAGES: Final = 25_000
HELD_OUT: Final = 16
"""Passages of each source that are not trained on."""
LONGEST: Final = 448
"""Tokens of a task; more is cut off."""
TOKENS: Final = 2000
"""Of a batch, its padding included."""
NOISE: Final = (0.7, 0.1)
"""The share of batches of shuffled text that comes twice, at first and at last: it teaches to copy and nothing else."""
PROMPT_WEIGHT: Final = 0.2
"""Of every fourth token of a prompt in the loss, beside one of an answer: the model still is one of language."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences with the tokens that are to be said."""

    tokens: Tensor
    """int64[B, T]."""
    weights: Tensor
    """float[B, T]: how much a token counts; none of padding."""
    kinds: Sequence[str] = ()


def encoded(task: Task, tokenizer: Any) -> tuple[list[int], int]:
    """Its tokens with the one that ends a text, and how many of them are the prompt's."""
    prompt = len(tokenizer(task.prompt)["input_ids"])
    return [*tokenizer(task.prompt + task.answer)["input_ids"], tokenizer.eos_token_id][:LONGEST], prompt


def batch_of(pairs: Sequence[tuple[list[int], int]], kinds: Sequence[str] = ()) -> Batch:
    """Pad on the right, where a causal model never looks."""
    width = max(len(tokens) for tokens, _ in pairs)
    tokens = torch.zeros(len(pairs), width, dtype=torch.long)
    weights = torch.zeros(len(pairs), width)
    for row, (line, prompt) in enumerate(pairs):
        tokens[row, : len(line)] = torch.tensor(line)
        weights[row, 1:prompt:4] = PROMPT_WEIGHT
        weights[row, prompt : len(line)] = 1.0
    return Batch(tokens, weights, kinds)


def noise(rng: Random, pool: Sequence[int], half: int) -> Batch:
    """Tokens of the pool at random, which come twice."""
    once = torch.tensor([rng.choices(pool, k=half) for _ in range(TOKENS // half // 2)])
    weights = torch.cat([torch.zeros(len(once), half + 1), torch.ones(len(once), half - 1)], dim=1)
    return Batch(torch.cat([once, once], dim=1), weights, ["noise"])


class Stream:
    """Batches without end: tasks of like lengths together, and noise."""

    def __init__(self, tasks: Iterator[Task], tokenizer: Any, rng: Random) -> None:
        """tasks: without end."""
        self._tasks, self._tokenizer, self._rng = tasks, tokenizer, rng
        self._groups: list[list[tuple[list[int], int]]] = []
        self.pool: list[int] = []
        """Tokens of texts, as often as they came."""

    def next(self, done: float) -> Batch:
        """done: the share of the training that is behind."""
        if not self._groups:
            self._fill()
        if self._rng.random() < NOISE[0] + (NOISE[1] - NOISE[0]) * min(1.0, 2 * done):
            return noise(self._rng, self.pool, self._rng.choice((16, 16, 32, 32, 64, 128, 200)))
        return batch_of(self._groups.pop())

    def _fill(self) -> None:
        pairs = [encoded(task, self._tokenizer) for task in islice(self._tasks, 64)]
        self.pool = [token for tokens, _ in pairs for token in tokens]
        groups: list[list[tuple[list[int], int]]] = [[]]
        for pair in sorted(pairs, key=lambda pair: len(pair[0])):
            if groups[-1] and len(pair[0]) * (len(groups[-1]) + 1) > TOKENS:
                groups.append([])
            groups[-1].append(pair)
        self._rng.shuffle(groups)
        self._groups = groups


def logits_of(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """float[M, V], int64[M], float[M]: what is said where something counts, what should be, and how much it counts."""
    hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state[:, :-1]
    weights = batch.weights[:, 1:]
    at = weights > 0
    return model.lm_head(hidden[at]).float(), batch.tokens[:, 1:][at], weights[at]


@torch.no_grad()
def accuracy(model: Any, held_out: Sequence[Batch]) -> dict[str, float]:
    """The share of answers' tokens that are the most likely ones, by kind of task."""
    right: dict[str, list[Tensor]] = defaultdict(list)
    for batch in held_out:
        said, wanted, weights = logits_of(model, batch)
        right[batch.kinds[0]].append((said.argmax(-1) == wanted)[weights == 1.0].float())
    return {kind: torch.cat(each).mean().item() for kind, each in sorted(right.items())}


def train(model: Any, data: Stream, held_out: Sequence[Batch], seconds: float, rate: float, folder: Path) -> None:
    """AdamW with a warm-up and a cosine over the time there is, on float32 copies of a model in bfloat16."""
    weights_of = list(model.parameters())
    masters = [weight.detach().float() for weight in weights_of]
    optimizer = torch.optim.AdamW(masters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    began, step, latest = time.process_time(), 0, 0.0
    while (done := (time.process_time() - began) / seconds) < 1.0:
        now = rate * min(1.0, (step + 1) / 50) * 0.5 * (1.0 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = now
        said, wanted, weights = logits_of(model, data.next(done))
        loss = (cross_entropy(said, wanted, reduction="none") * weights).sum() / weights.sum()
        model.zero_grad()
        loss.backward()
        for master, weight in zip(masters, weights_of, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, weight in zip(masters, weights_of, strict=True):
                weight.copy_(master)
        latest += 0.05 * (loss.item() - latest) if step else loss.item()
        if step % 50 == 0:
            found = " ".join(f"{kind} {share:.2f}" for kind, share in accuracy(model, held_out).items())
            print(f"step {step}, {done:.0%}: loss {latest:.3f}; held out: {found}", flush=True)
            save(model, folder)
        step += 1
    print("held out, at the end:", accuracy(model, held_out))


def save(model: Any, folder: Path) -> None:
    """A model folder like that of `demo`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = {name: tensor.detach().bfloat16() for name, tensor in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", *COPIED):
        shutil.copyfile(DEMO.path() / name, folder / name)


def main() -> None:
    """Train, save, grow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="of one processor's time")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    given = parser.parse_args()
    rng = Random(0)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO.path())
    suite = "\n".join(turn for question in load_suite("grounded").questions for turn in question.turns)
    texts, tests = {}, []
    for source in SHARES:
        texts[source], held_out = grounded.split(grounded.passages(source, given.data, PASSAGES, suite), HELD_OUT)
        found = [task for text in held_out for task in grounded.tasks(source, text, rng)]
        tests += [batch_of([encoded(task, tokenizer)], [task.kind]) for task in found]
        print(f"{source}: {len(texts[source])} passages", flush=True)
    model = load(DEMO.path())
    model.set_attn_implementation("eager")  # whose backward pass is faster than the fused one's on a processor
    data = Stream(grounded.forever(texts, SHARES, rng), tokenizer, rng)
    data.next(1.0)
    tests += [noise(rng, data.pool, half) for half in (32, 200)]
    train(model, data, tests, given.minutes * 60, given.rate, given.output / "small")
    save(model, given.output / "small")
    grown = given.output / "grown"
    shutil.rmtree(grown, ignore_errors=True)
    grown.mkdir()
    build("copying-100m", given.output / "small", DEMO_100M.shape, 0, grown)


if __name__ == "__main__":
    main()
