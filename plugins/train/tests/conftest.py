"""A tiny model in a folder, a file of texts for it, and a command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fastllm_core.testing import tiny_model, tiny_tokenizer

LETTERS = "abcdefgh"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny random Llama: 64 entries, a context of 256."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of different lengths, one a line."""
    rng = random.Random(0)
    lines = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(8, 40))) for _ in range(120)]
    path = tmp_path_factory.mktemp("data") / "texts.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path
