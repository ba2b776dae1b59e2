"""Files of prompts for tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastllm_core import ConfigError, read_prompts


def test_prompts_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n{"turns": ["three", "four"]}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "one"}\n{"question": "two"}\n')
    assert read_prompts(tmp_path / "a.txt") == ["one", "two"]
    assert read_prompts(tmp_path / "a.jsonl", 2) == ["one", "two"]
    assert read_prompts(tmp_path / "a.jsonl")[2] == "three"
    assert len(read_prompts(None)) == 8
    with pytest.raises(ConfigError, match=r"b\.jsonl, line 2: an object with prompt, text or turns"):
        read_prompts(tmp_path / "b.jsonl")
