r"""Documents from files: text, pairs of prompt and answer, or chats, with what is to be learned marked.

- `.txt`: one document a line, with line ends inside it written as `\n`
- `.jsonl`: an object a line: `text`; `prompt` or `question` with `completion`, `answer` or `response`; `messages` (with
  `role` and `content`) or `conversations` (with `from` and `value`)

Either may be packed as `.xz` or `.gz`.
"""

from __future__ import annotations

import gzip
import json
import logging
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastllm_core import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKED: Final[Mapping[str, Callable[..., Any]]] = {".xz": lzma.open, ".gz": gzip.open}
PROMPTS: Final = ("prompt", "question", "instruction")
ANSWERS: Final = ("completion", "answer", "response", "output")
ROLES: Final = {"human": "user", "gpt": "assistant", "bot": "assistant"}
"""What ShareGPT calls speakers."""

log = logging.getLogger("fastllm")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document."""

    text: str
    answer: bool
    """Whether it is to be learned."""


Document = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A document as tokens."""

    tokens: list[int]
    answers: list[bool]
    """Which of them are to be learned."""

    @property
    def prompt(self) -> int:
        """Tokens before the first that is to be learned; at least 1, since a round needs a root."""
        return max(1, next((i for i, learned in enumerate(self.answers) if learned), len(self.answers)))


def documents(paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase) -> Iterator[Document]:
    """Every document of some files. Rows that cannot be read are left out, and a warning says how many and why.

    Raises ConfigError if a file cannot be read, or holds no document.
    """
    for path in paths:
        good, bad = 0, list[str]()
        for number, line in _lines(path):
            try:
                document = _document(line, path, tokenizer)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                bad.append(f"line {number}: {(str(error).splitlines() or ['?'])[0]}")
                continue
            good += 1
            yield document
        if not good:
            raise ConfigError(f"--data {path}: holds no document{f' ({bad[0]})' if bad else ''}")
        if bad:
            log.warning("%s: %d of %d rows were left out; the first: %s", path, len(bad), good + len(bad), bad[0])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opened = PACKED.get(path.suffix, open)
    if _kind(path) not in (".txt", ".jsonl"):
        raise ConfigError(f"--data {path}: must be .txt or .jsonl, or one of them as .xz or .gz")
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise ConfigError(f"--data {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def _document(line: str, path: Path, tokenizer: PreTrainedTokenizerBase) -> Document:
    if _kind(path) == ".txt":
        return (Piece(line.replace("\\n", "\n"), True),)
    value = json.loads(line)
    if "text" in value:
        return (Piece(_words(value["text"]), True),)
    turns = value.get("messages") or value.get("conversations")
    if turns:
        return _chat(turns, tokenizer)
    prompt = next((value[name] for name in PROMPTS if name in value), None)
    answer = next((value[name] for name in ANSWERS if name in value), None)
    if prompt is None or answer is None:
        raise ValueError("neither text, nor messages, nor a prompt with its completion")
    return Piece(_words(prompt), False), Piece(_words(answer), True)


def _words(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a text was expected, not {value!r:.40}")
    return value


def _chat(turns: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Document:
    """The chat as the model's template writes it; what the assistant says is to be learned."""
    if tokenizer.chat_template is None:
        raise ConfigError("--data: holds chats, and the model's tokenizer has no chat template")
    said = [_turn(turn) for turn in turns]
    pieces: list[Piece] = []
    done = ""
    for index, turn in enumerate(said):
        if turn["role"] != "assistant":
            continue
        asked = str(tokenizer.apply_chat_template(said[:index], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(said[: index + 1], tokenize=False))
        if not (asked.startswith(done) and whole.startswith(asked)):
            raise ValueError("the chat template rewrites earlier turns")
        pieces += [Piece(asked[len(done) :], False), Piece(whole[len(asked) :], True)]
        done = whole
    if not pieces:
        raise ValueError("the assistant says nothing")
    return tuple(pieces)


def _turn(turn: Mapping[str, Any]) -> dict[str, str]:
    role = str(turn["role"] if "role" in turn else turn["from"])
    return {"role": ROLES.get(role, role), "content": _words(turn["content"] if "content" in turn else turn["value"])}


def tokenized(document: Document, tokenizer: Any) -> Text:
    """Tokens of a document, piece by piece as generation meets them, and its end.

    A chat's first piece holds what its template wants; everything else begins as the tokenizer begins a text.
    """
    tokens: list[int] = []
    answers: list[bool] = []
    chat = len(document) > 1 and bool(tokenizer.chat_template)
    for index, piece in enumerate(document):
        ids = tokenizer(piece.text, add_special_tokens=index == 0 and not chat).input_ids
        tokens += ids
        answers += [piece.answer] * len(ids)
    if tokenizer.eos_token_id is not None and (not tokens or tokens[-1] != tokenizer.eos_token_id):
        tokens.append(tokenizer.eos_token_id)
        answers.append(document[-1].answer)
    return Text(tokens, answers)
