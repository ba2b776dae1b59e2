"""A file of JSON lines that is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastllm_core import ConfigError, Journal


def test_what_an_interruption_left_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    with Journal(path) as journal:
        assert journal.lines == []
        journal.write({"a": 1})
        assert json.loads(path.read_text()) == {"a": 1}, "written at once"
    with path.open("a") as file:
        file.write('{"b"')
    with Journal(path) as journal:
        assert journal.lines == ['{"a":1}']
        journal.write({"c": 2})
    assert path.read_text() == '{"a":1}\n{"c":2}\n'


def test_no_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"events.jsonl: it is no text file; delete it"):
        Journal(path)
