"""The prompts of a benchmark: suites by name, from a folder or from the hub, and any JSON-lines file of one's own."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

from fastllm_core import RequestError

from .download import Hub, Web, fetch


@dataclass(frozen=True, slots=True)
class Question:
    """One conversation: what the person says, turn by turn."""

    id: str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """Questions under a name."""

    name: str
    questions: tuple[Question, ...]

    @property
    def hash(self) -> str:
        """Changes with every question, their order included."""
        text = json.dumps([[each.id, each.category, each.turns] for each in self.questions])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def limited(self, count: int | None) -> Suite:
        """The first `count` questions, taken from all categories in turn, so that few still cover all."""
        by_category: dict[str, list[Question]] = defaultdict(list)
        for question in self.questions:
            by_category[question.category].append(question)
        turns = chain.from_iterable(zip_longest(*by_category.values()))
        kept = {question.id for question in [each for each in turns if each is not None][:count]}
        return Suite(self.name, tuple(question for question in self.questions if question.id in kept))


Row = Mapping[str, Any]

MT_BENCH: Final = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Categories of MT-bench, which Spec-Bench counts as one task."""


def _spec_bench(row: Row) -> tuple[str, list[str]]:
    category = str(row["category"])
    return "mt_bench" if category in MT_BENCH else category, list(row["turns"])


def _gsm8k(row: Row) -> tuple[str, list[str]]:
    return "gsm8k", [f"Question: {row['question']}\nAnswer:"]


def _humaneval(row: Row) -> tuple[str, list[str]]:
    return "humaneval", [str(row["prompt"])]


def _mbpp(row: Row) -> tuple[str, list[str]]:
    tests = "\n".join(row["test_list"])
    return "mbpp", [f"{row['text']}\nYour code should pass these tests:\n{tests}\n"]


def _any(row: Row) -> tuple[str, list[str]]:
    turns = row.get("turns") or next((row[key] for key in ("prompt", "question", "text") if row.get(key)), None)
    if turns is None:
        raise KeyError("turns")
    return str(row.get("category", "all")), [turns] if isinstance(turns, str) else list(turns)


@dataclass(frozen=True, slots=True)
class Published:
    """A suite that is known by name."""

    read: Callable[[Row], tuple[str, list[str]]]
    """A row's category and turns."""
    names: tuple[str, ...]
    """What its file is called in a folder."""
    source: Hub | Web


PUBLISHED: Final[Mapping[str, Published]] = {
    "spec-bench": Published(
        _spec_bench,
        ("spec_bench.jsonl", "question.jsonl"),
        Web("https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"),
    ),
    "humaneval": Published(
        _humaneval,
        ("humaneval.jsonl", "HumanEval.jsonl"),
        Hub("openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet"),
    ),
    "gsm8k": Published(
        _gsm8k, ("gsm8k_test.jsonl", "gsm8k.jsonl"), Hub("openai/gsm8k", "main/test-00000-of-00001.parquet")
    ),
    "mbpp": Published(_mbpp, ("mbpp.jsonl",), Hub("google-research-datasets/mbpp", "full/test-00000-of-00001.parquet")),
}
BUILT_IN: Final = ("demo", "grounded")
"""Suites in this package; where their texts come from stands beside them."""


def load_suite(name: str, folder: Path | None = None) -> Suite:
    """A suite by name, or the questions of a JSON-lines file.

    name: demo or grounded (built in), spec-bench, humaneval, gsm8k, mbpp, or a path. A row of a file has `turns` (a
    list) or `prompt`, `question` or `text`, and may have `category` and `id`.
    folder: where the files of published suites lie; without it they are downloaded.
    Raises RequestError if there is no such suite, or a row has no prompt.
    """
    if name in BUILT_IN:
        text = (files(__package__) / "suites" / f"{name}.jsonl").read_text(encoding="utf-8")
        return _suite(name, _lines(text, name), _any)
    if name in PUBLISHED:
        suite = PUBLISHED[name]
        rows = fetch(name, suite.source) if folder is None else _from_folder(name, suite, folder)
        return _suite(name, rows, suite.read)
    path = Path(name).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        known = ", ".join([*BUILT_IN, *PUBLISHED])
        raise RequestError(f"--suite {name}: no such suite or .jsonl file; there are {known}, or give a file")
    return _suite(path.stem, _lines(path.read_text(encoding="utf-8"), str(path)), _any)


def _from_folder(name: str, suite: Published, folder: Path) -> Iterator[Row]:
    path = next((folder / each for each in suite.names if (folder / each).is_file()), None)
    if path is None:
        raise RequestError(f"--data {folder}: has no {' or '.join(suite.names)} for the suite '{name}'")
    return _lines(path.read_text(encoding="utf-8"), str(path))


def _lines(text: str, where: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RequestError(f"{where}, line {number}: is not JSON: {error}") from error


def _suite(name: str, rows: Iterator[Row], read: Callable[[Row], tuple[str, list[str]]]) -> Suite:
    questions = []
    for number, row in enumerate(rows, start=1):
        try:
            category, turns = read(row)
        except (KeyError, TypeError) as error:
            raise RequestError(f"suite '{name}', row {number}: has no {error}") from error
        questions.append(Question(_id(row, number), category, tuple(turns)))
    if not questions:
        raise RequestError(f"suite '{name}' has no questions")
    _check_ids(name, questions)
    return Suite(name, tuple(questions))


def _id(row: Row, number: int) -> str:
    return str(next((row[key] for key in ("id", "question_id", "task_id") if key in row), number))


def _check_ids(name: str, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise RequestError(f"suite '{name}': two rows have the id '{question.id}'; give each its own")
        seen.add(question.id)
