"""Rows of tokens from text files."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastllm_core import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENISED: Final = 256
"""Texts that are tokenised at once."""


def texts_of(path: Path) -> Iterator[str]:
    r"""One text a line, with `\n` written out, or an object with `text`, or with `prompt` and `completion`.

    path: .txt or .jsonl, or either of them packed as .xz. Raises ConfigError.
    """
    names = path.name.removesuffix(".xz")
    opened: Any = lzma.open if path.suffix == ".xz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield (
                        _text(json.loads(line)) if names.endswith(".jsonl") else line.rstrip("\n").replace("\\n", "\n")
                    )
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise ConfigError(f"--data {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _text(value: Any) -> str:
    return str(value["text"]) if "text" in value else f"{value['prompt']}{value['completion']}"


def rows_of(paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, length: int, rows: int, seed: int) -> Tensor:
    """int64[rows or fewer, length]: texts one after the other, each with its end, cut into rows and shuffled.

    Raises ConfigError if not even one row fills.
    """
    ids = list(islice(_tokens(chain.from_iterable(map(texts_of, paths)), tokenizer), rows * length))
    count = len(ids) // length
    if not count:
        raise ConfigError(f"--data: holds {len(ids)} tokens, and a row has {length}")
    packed = torch.tensor(ids[: count * length]).view(count, length)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return packed[order]


def _tokens(texts: Iterable[str], tokenizer: Any) -> Iterator[int]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream = iter(texts)
    while block := list(islice(stream, TOKENISED)):
        for ids in tokenizer(block)["input_ids"]:
            yield from ids
            yield from end
