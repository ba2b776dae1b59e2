"""Published suites from where they are published: the Hugging Face hub, or the repository of a paper."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from fastllm_core import RequestError

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Hub:
    """A file of a dataset on the Hugging Face hub, whose cache and login settings hold."""

    repo: str
    file: str


@dataclass(frozen=True, slots=True)
class Web:
    """A file of a paper's repository."""

    url: str


def fetch(name: str, source: Hub | Web) -> Iterator[Mapping[str, Any]]:
    """The rows of a published suite. Raises RequestError if it cannot be downloaded or read."""
    try:
        if isinstance(source, Web):
            with urlopen(source.url, timeout=TIMEOUT_S) as answer:
                return iter([json.loads(line) for line in answer.read().decode("utf-8").splitlines() if line.strip()])
        from huggingface_hub import hf_hub_download

        return _rows(Path(hf_hub_download(source.repo, source.file, repo_type="dataset")))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors, those of a bad name ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"--suite {name}: cannot be downloaded ({reason}); give a folder that has it: --data DIR"
        ) from error


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise RequestError(
            f"{path.name} is a parquet file: pip install 'fastllm-plugin-bench[hub]' to read it, or give a folder with "
            "the suite as .jsonl: --data DIR"
        ) from error
    rows: list[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
    return iter(rows)
