"""`fastllm compile`, without a compiler (see `testing.unrolled`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fastllm_core import compiled, compiler
from fastllm_core.cli.app import run
from fastllm_core.cli.failures import guarded
from fastllm_core.programs import ProgramFolder
from fastllm_core.step import Step
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_core.testing.unrolled import Unrolled


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FASTLLM_COMPILED", str(tmp_path / "compiled"))

    monkeypatch.setattr(compiled, "Compiled", Unrolled)
    folder = tmp_path / "model"
    tiny_model(num_hidden_layers=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_it_compiles_shows_and_clears(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compile", "--model", model, "--method", "plain", "--batch"]) == 0
    out, err = capsys.readouterr()
    assert "a minute or two for each network" in err
    assert "one text" in out
    assert "several texts" in out
    assert "a forward of" in out
    assert "6 rows" in out
    kinds = sorted(program.name.partition(", ")[2] for program in ProgramFolder())
    in_turn = ["4 tokens in turn, one text", "4 tokens in turn, several texts"]
    assert kinds == [*in_turn, "one row, one text", "one row, several texts", "one text"]
    assert run(["compile", "--list"]) == 0
    assert "one text" in capsys.readouterr().out
    assert run(["generate", "--model", model, "--method", "plain", "abc", "--max-new-tokens", "3", "--stats"]) == 0
    assert "forwards: compiled" in capsys.readouterr().err
    assert run(["compile", "--clear"]) == 0
    assert "deleted 5 programs" in capsys.readouterr().out
    assert run(["generate", "--model", model, "--method", "plain", "abc", "--max-new-tokens", "3", "--stats"]) == 0
    err = capsys.readouterr().err
    assert f"forwards: eager; 'fastllm compile --model {model} --method plain' and the same settings makes them" in err


def test_what_cannot_be_compiled_is_an_error(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastllm_core.errors import UnsupportedModel

    def refuse(self: Unrolled, step: Step, path: Path) -> dict[str, Any]:
        raise UnsupportedModel("no")

    monkeypatch.setattr(Unrolled, "compile", refuse)
    assert guarded(lambda: run(["compile", "--model", model, "--method", "plain"])) == 2
    assert "not compiled: " in capsys.readouterr().err


def test_no_compiler_is_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "obstacle", lambda: "there is no C++ compiler: install one")
    assert guarded(lambda: run(["compile", "--model", model, "--method", "plain"])) == 2
    assert "error: nothing can be compiled here: there is no C++ compiler: install one" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners")
def test_a_folder_that_is_open_to_others_is_told_before_anything_is_compiled(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ProgramFolder().folder
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    assert guarded(lambda: run(["compile", "--model", model, "--method", "plain"])) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"chmod 700 {folder}" in err


def test_an_empty_list_says_what_to_do(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compile", "--list"]) == 0
    assert "nothing is compiled in " in capsys.readouterr().out
