"""Tasks whose answers copy from their prompts, made of stories, novels and programs.

They are of the kinds of the suite `grounded` and for training. Nothing of a suite's own texts is used.
"""

from __future__ import annotations

import ast
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

NAMES: Final = (
    *("Nora", "Ella", "Oscar", "Ruby", "Hugo", "Felix", "Leo", "Otto", "Ivy", "Clara"),
    *("Noah", "Maya", "Ada", "Bella", "Carl", "Dora", "Emil", "Fred", "Gina", "Hans"),
)
SHORTEST, LONGEST = 350, 1000
"""Characters of a passage."""
BEGUN: Final = 3
"""Words of the answer that the prompt gives away."""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and the one answer that is right."""

    kind: str
    prompt: str
    answer: str


def sentences(text: str) -> list[str]:
    """A passage cut behind the marks that end sentences."""
    return re.split(r"(?<=[.!?])\s+", text)


def begun(kind: str, question: str, answer: str) -> Task:
    """A task whose prompt ends in the first words of the answer."""
    words = re.match(rf"(?:\S+\s+){{{BEGUN - 1}}}\S+", answer)
    end = words.end() if words else 0
    return Task(kind, question + answer[:end], answer[end:])


def summary(text: str, rng: Random) -> Task | None:
    """The first sentence and the last."""
    parts = sentences(text)
    if len(parts) < 3:
        return None
    return begun("summary", f"{text}\n\nA short summary, in the words of the text: ", f"{parts[0]} {parts[-1]}")


def answering(text: str, rng: Random) -> Task | None:
    """The sentence that has a word which no other has."""
    words = re.findall(r"[a-z]{6,}", text)
    once = [word for word in words if text.count(word) == 1]
    if not once:
        return None
    word = rng.choice(once)
    sentence = next((each for each in sentences(text) if word in each), None)
    if sentence is None or '"' in sentence or len(sentence.split()) < 2 * BEGUN:
        return None
    question = f'{text}\n\nQuestion: What does the text say with the word "{word}"?\nAnswer, quoting the text: "'
    return begun("answering", question, f'{sentence}"')


def retelling(text: str, rng: Random) -> Task | None:
    """The same once more."""
    return begun("retelling", f"{text}\n\nRead it to me again, please.\n\n", text)


def rewriting(text: str, rng: Random) -> Task | None:
    """The same with another name; the answer is begun up to where the name has come."""
    found = [name for name in re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", text) if text.count(name) > 2]
    if not found:
        return None
    old, new = found[0], rng.choice(NAMES)
    answer = re.sub(rf"\b{old}\b", new, text)
    end = re.compile(rf"{new}\S*(?: \w+)?").search(answer)
    if end is None:
        return None
    question = f"{text}\n\nThe same story, with {new} in place of {old}:\n\n"
    return Task("rewriting", question + answer[: end.end()], answer[end.end() :])


def editing(text: str, rng: Random) -> Task | None:
    """The same function with a small change."""
    head, _, body = text.partition(":\n")
    name = head[4:].partition("(")[0]
    arguments = [each for each in re.findall(r"[(,] ?(\w+)", head) if len(each) > 1 and each != "self"]
    change = rng.randrange(3)
    if change == 0:
        said, answer, start = "under another name", text.replace(f"def {name}(", "def renamed(", 1), "def renamed("
    elif change == 1:
        start = f"{head}:\n    print('{name}')\n"
        said, answer = ", which says that it was called", f"{start}{body}"
    elif arguments:
        old = arguments[0]
        answer = re.sub(rf"\b{old}\b", "given", text)
        start, said = f"def {name}(given", f" with the argument `{old}` called `given`"
    else:
        return None
    if not answer.startswith(start):
        return None
    said = said if said[0] in ", " else f" {said}"
    return Task("code edit", f"{text}\n\n\n# The same function{said}.\n{start}", answer[len(start) :])


KINDS: Final[dict[str, tuple[Callable[[str, Random], Task | None], ...]]] = {
    "stories": (retelling, rewriting, summary, answering),
    "books": (summary, answering, retelling),
    "code": (editing,),
}


def tasks(source: str, text: str, rng: Random) -> Iterator[Task]:
    """One task of a kind that goes with the passage, if it has one."""
    task = rng.choice(KINDS[source])(text, rng)
    if task is not None:
        yield task


def stories(folder: Path) -> Iterator[str]:
    """One a line, with its line breaks spelled out."""
    with lzma.open(folder / "stories.txt.xz", "rt", encoding="utf-8") as lines:
        yield from (line.strip().replace("\\n", "\n") for line in lines)


def paragraphs(folder: Path) -> Iterator[str]:
    """Of novels, on one line each."""
    with lzma.open(folder / "books.txt.xz", "rt", encoding="utf-8") as lines:
        paragraph = ""
        for line in lines:
            if line.strip():
                paragraph += f" {line.strip()}"
            elif paragraph:
                yield " ".join(paragraph.split())
                paragraph = ""


def functions(folder: Path) -> Iterator[str]:
    """Of Python programs, without their comments."""
    with lzma.open(folder / "python_code.txt.xz", "rt", encoding="utf-8") as file:
        programs = file.read()
    for found in re.finditer(r"^def .*?(?=^\S)", programs, re.MULTILINE | re.DOTALL):
        try:
            function = ast.parse(found[0]).body[0]
        except SyntaxError:
            continue
        if isinstance(function, ast.FunctionDef) and ast.get_docstring(function) is not None:
            function.body = function.body[1:] or [ast.Pass()]
        yield ast.unparse(function)


SOURCES: Final[dict[str, Callable[[Path], Iterator[str]]]] = {
    "stories": stories,
    "books": paragraphs,
    "code": functions,
}


def passages(source: str, folder: Path, most: int, without: str) -> list[str]:
    """At most `most` passages of a source that are neither too short nor too long, and no part of a text."""
    fitting = (text for text in SOURCES[source](folder) if SHORTEST // (1 + (source == "code")) < len(text) < LONGEST)
    return list(islice((text for text in fitting if text[:80] not in without), most))


def split(texts: list[str], held_out: int) -> tuple[list[str], list[str]]:
    """Those to train on, and those to test on, which come from all over."""
    step = max(1, len(texts) // held_out)
    return [text for at, text in enumerate(texts) if at % step], texts[::step][:held_out]


def forever(texts: dict[str, list[str]], weights: dict[str, float], rng: Random) -> Iterator[Task]:
    """Tasks of all sources, each with its share."""
    while True:
        source = rng.choices(list(weights), list(weights.values()))[0]
        yield from tasks(source, rng.choice(texts[source]), rng)
