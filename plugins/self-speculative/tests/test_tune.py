"""`fastllm tune layers` from the command line to a file that the method takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fastllm_core
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_self_speculative.skipset import SkipSet
from fastllm_plugin_self_speculative.tuning import session as sessions
from fastllm_plugin_self_speculative.tuning.agreement import Agreement
from fastllm_plugin_self_speculative.tuning.costs import Costs
from fastllm_plugin_self_speculative.tuning.result import report

CHEAP = Costs((1.0,) * 4, (1.0,) * 4, 0.1, {1: 8.1, 9: 8.1})
DEAR = Costs((0.1,) * 4, (0.1,) * 4, 8.0, {1: 8.8, 9: 13.0})
"""Skipping saves next to nothing, and rows are not free."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model in a folder, of which layer 2 adds nothing at all."""
    folder = tmp_path_factory.mktemp("target")
    model: Any = tiny_model()
    model.model.layers[2].self_attn.o_proj.weight.data.zero_()
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tune(target: str, folder: Path, *more: str, costs: Costs = CHEAP) -> dict[str, Any]:
    """Run the command and read its result."""
    from fastllm_core.cli import main

    file = folder.parent / "costs.json"
    file.write_text(json.dumps(costs.to_json()))
    words = ["tune", "layers", "--model", target, "--dtype", "float32", "--device", "cpu", "--set", "forward=eager"]
    words += ["--limit", "3", "--max-new-tokens", "8", "--longest", "4", "--costs", str(file), "--output", str(folder)]
    with pytest.raises(SystemExit) as ended:
        main([*words, *more])
    if ended.value.code:
        raise RuntimeError(str(ended.value.code))
    found: dict[str, Any] = json.loads((folder / "skip.json").read_text())
    return found


def load(target: str, **options: Any) -> Any:
    return fastllm_core.load(target, "self-speculative", dtype="float32", config={"forward": "eager"}, **options)


def test_a_search_finds_the_layer_that_adds_nothing(target: str, tmp_path: Path) -> None:
    found = tune(target, tmp_path / "out", "--trials", "30", "--finalists", "0", "--search", "tpe,greedy,random")
    assert 2 in found["attention"]
    assert 2 in found["mlp"]
    assert found["pays"] is True
    assert found["best"] == found["tried"]["predicted_speedup"] > 1.0
    assert set(found["searches"]) == {"tpe", "greedy", "random"}
    assert found["model"]["layers"] == 4
    assert found["model"]["head"]
    assert {"fastllm-core", "torch", "optuna", "python"} <= found["versions"].keys()
    assert (tmp_path / "out" / "search.svg").read_text().count("<path") == 3
    with load(target, skip=str(tmp_path / "out" / "skip.json")) as pipeline:
        assert pipeline.generate([3, 4], max_new_tokens=8).report.drafted


def test_a_stopped_search_goes_on_and_a_finished_one_is_not_repeated(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--finalists", "0", "--seed", "3")
    tune(target, tmp_path / "whole", "--trials", "25", *words)
    for trials in ("6", "14", "25"):
        tune(target, tmp_path / "part", "--trials", trials, *words)
    files = [(tmp_path / name / "tpe.jsonl").read_text().splitlines()[1:] for name in ("whole", "part")]
    assert files[0] == files[1]
    assert len(files[0]) == 25
    monkeypatch.setattr(Agreement, "of", lambda *_: pytest.fail("it was scored again"))
    tune(target, tmp_path / "part", "--trials", "25", *words)


def test_where_nothing_pays_it_says_so_and_the_method_drafts_nothing(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tune(target, tmp_path / "out", "--trials", "20", "--finalists", "0", costs=DEAR)
    assert (found["pays"], found["attention"], found["mlp"], found["draft_length"]) == (False, [], [], None)
    assert 0.9 < found["best"] < 1.0
    assert found["tried"]["attention"] or found["tried"]["mlp"]
    assert f"no skip set surely pays: the best one runs at {found['best']:.2f} times plain" in capsys.readouterr().err
    with load(target, skip=str(tmp_path / "out" / "skip.json")) as pipeline:
        assert pipeline.generate([3, 4], max_new_tokens=8).report.drafted == 0


def test_finalists_are_raced_with_equality_beside_speed(target: str, tmp_path: Path) -> None:
    found = tune(target, tmp_path / "out", "--trials", "12", "--finalists", "2", "--repeats", "2")
    assert len(found["raced"]) == 2
    for figures in found["raced"]:
        assert figures["same"] == figures["texts"] == 3
        assert figures["low"] <= figures["ratio"] <= figures["high"]
        assert figures["tokens_per_round"] > 1.0
        assert figures["forwards"] == "eager"
    assert found["best"] == max(figures["ratio"] for figures in found["raced"])
    assert found["pays"] is (found["raced"][0]["low"] > 1.0), "faster in every repeat"


def test_acceptance_alone_has_a_limit_of_cost(target: str, tmp_path: Path) -> None:
    words = ("--objective", "acceptance", "--most", "0.6", "--trials", "30", "--finalists", "0")
    found = tune(target, tmp_path / "out", *words)
    assert found["tried"]["draft_cost"] <= 0.6
    assert found["searches"]["tpe"]["best"] == found["tried"]["acceptance"]


def test_the_measured_objective_decodes_in_every_trial(target: str, tmp_path: Path) -> None:
    words = ("--objective", "measured", "--trials", "3", "--finalists", "0", "--repeats", "1", "--limit", "1")
    found = tune(target, tmp_path / "out", *words)
    lines = (tmp_path / "out" / "tpe.jsonl").read_text().splitlines()[1:]
    values = [json.loads(line)["value"] for line in lines]
    assert values[0] == 1.0
    assert all(value > 0 for value in values)
    assert found["objective"] == "measured"


def test_an_early_exit_is_chosen_by_trying_all(target: str, tmp_path: Path) -> None:
    found = tune(target, tmp_path / "out", "--space", "exit", "--trials", "10", "--finalists", "0")
    assert found["searches"]["tpe"]["trials"] == 4
    skipped = SkipSet.of(found["tried"]["attention"], found["tried"]["mlp"])
    assert skipped.exit_layer(4) in (1, 2, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "best"), "--objective best: does not exist; choose from predicted, measured, acceptance"),
        (("--search", "x"), "--search x: does not exist; choose from tpe, gp, greedy, random"),
        (("--space", "x"), "--space x: does not exist; choose from sublayers, ranges, exit"),
        (("--prompts", "/no/where"), "--prompts /no/where: cannot be read"),
        (("--costs", "/no/where"), "--costs /no/where: cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_one_line(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RuntimeError, match="2"):
        tune(target, tmp_path / "out", *words)
    assert f"error: {message}" in capsys.readouterr().err


def test_costs_of_another_model_are_refused(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Costs((1.0,) * 5, (1.0,) * 5, 1.0, {1: 11.0})
    with pytest.raises(RuntimeError, match="2"):
        tune(target, tmp_path / "out", costs=other)
    assert "are of a model with 5 layers, and this one has 4" in capsys.readouterr().err


def test_a_folder_with_another_search_is_kept(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--trials", "2", "--finalists", "0")
    tune(target, tmp_path / "out", *words)
    with pytest.raises(RuntimeError, match="2"):
        tune(target, tmp_path / "out", *words, "--limit", "2")
    assert "holds a search for something else (different: prompts)" in capsys.readouterr().err
    tune(target, tmp_path / "out", *words, "--limit", "2", "--fresh")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(RuntimeError, match="2"):
        tune(target, tmp_path / "mine", *words, "--fresh")
    assert (tmp_path / "mine" / "letter.txt").exists()
    (tmp_path / "out" / "setup.json").write_text("{")
    with pytest.raises(RuntimeError, match="2"):
        tune(target, tmp_path / "out", *words, "--limit", "2")
    assert "setup.json: is no setup of a search" in capsys.readouterr().err


def test_a_search_without_trials_says_so() -> None:
    from fastllm_plugin_self_speculative.tuning.result import Outcome
    from fastllm_plugin_self_speculative.tuning.trial import Score, Trial

    best = Trial(0, "baseline", SkipSet(), Score(0.9, 1.0, 1.0, 1))
    assert report(Outcome(best, False), CHEAP, Path("x")) == ["nothing was tried but the whole model; give more trials"]
    assert sessions.RESULT == "skip.json"
