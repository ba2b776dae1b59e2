"""From files to a head: what is written, what is foretold, and runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastllm_core
from fastllm_core import ConfigError, PluginNotFound
from fastllm_core.testing import tiny_tokenizer
from fastllm_plugin_train import fit, state
from fastllm_plugin_train.session import Result, Wishes, session
from fastllm_plugin_train.teacher import Teacher

RECIPE: dict[str, Any] = {
    "steps": 24,
    "batch": 4,
    "length": 48,
    "learning_rate": 1e-2,
    "warmup": 2,
    "evaluate_every": 8,
    "held_out": 0.2,
}


def wishes(model: str, data: Path, output: Path, **given: Any) -> Wishes:
    settings: dict[str, Any] = {"model": model, "dtype": "float32", "device": "cpu"}
    return Wishes(
        method="kangaroo",
        config=fastllm_core.load_config(None, settings),
        data=[data],
        output=output,
        options={"exit_layer": "2"},
        recipe={**RECIPE, **given.pop("recipe", {})},
        **{"proofs": 6, "new_tokens": 40, "draft_length": 3, "save_every": 5, **given},
    )


def run(wished: Wishes) -> Result:
    return session(wished, say=lambda line: None)


@pytest.fixture(scope="module")
def trained(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(wishes(model, data, tmp_path_factory.mktemp("trained")))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / state.FILE)


def same(one: Path, two: Path) -> bool:
    ours, theirs = weights(one), weights(two)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_head_learns_and_generation_accepts_what_was_foretold(trained: Result) -> None:
    first, last = trained.state.evaluations[0], trained.state.evaluations[-1]
    assert last["loss"] < first["loss"] - 0.1
    proof = trained.proof
    assert proof is not None
    assert proof.same_text == proof.texts == 6
    assert proof.measured == proof.foretold
    assert proof.measured.accepted_at[0] > 0


def test_what_is_written(trained: Result) -> None:
    files = {path.name for path in trained.output.iterdir()}
    assert files == {"README.md", "config.json", "curves.json", "curves.svg", "model.safetensors", state.FILE}
    told = json.loads((trained.output / "curves.json").read_text())
    assert [each["step"] for each in told["evaluations"]] == [0, 8, 16, 24]
    assert [step for step, _ in told["losses"]] == [8, 16, 24]
    assert (trained.output / "curves.svg").read_text().count("<polyline") == 4
    card = (trained.output / "README.md").read_text()
    assert "tokens per round" in card
    head = json.loads((trained.output / "config.json").read_text())
    assert head["settings"]["exit_layer"] == 2
    assert head["target"]["head"]


def test_a_run_that_stops_anywhere_ends_with_the_same_weights(
    trained: Result, model: str, data: Path, tmp_path: Path
) -> None:
    whole = fit.fit
    for stop in (3, 13):

        def stopping(run_: Any, watcher: Any, wants: Any, stop: int = stop) -> Any:
            return whole(run_, watcher, lambda: watcher.progress.tasks[0].completed >= stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastllm_plugin_train.session.fit", stopping)
            result = run(wishes(model, data, tmp_path))
        assert not result.done
        assert result.state.step == stop
        assert (tmp_path / "curves.svg").is_file()
    result = run(wishes(model, data, tmp_path))
    assert result.done
    assert same(tmp_path, trained.output)
    assert result.state.losses == trained.state.losses
    assert result.state.evaluations == trained.state.evaluations


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(trained: Result, model: str, data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import test_session as t\n"
        "from fastllm_plugin_train import fit\n"
        "import time; step = fit._step\n"
        "fit._step = lambda *a: (time.sleep(0.1), step(*a))[1]\n"
        "t.run(t.wishes(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))\n"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), model, str(data), str(tmp_path)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    while not (tmp_path / state.FILE).exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.37)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = run(wishes(model, data, tmp_path))
    assert result.done
    assert same(tmp_path, trained.output)


def test_a_folder_of_another_run_is_not_touched(trained: Result, model: str, data: Path) -> None:
    before = (trained.output / state.FILE).read_bytes()
    with pytest.raises(ConfigError, match="another recipe"):
        run(wishes(model, data, trained.output, recipe={"learning_rate": 1.0}))
    assert (trained.output / state.FILE).read_bytes() == before


def test_fresh_begins_anew(model: str, data: Path, tmp_path: Path) -> None:
    short = {"steps": 2, "evaluate_every": 2}
    run(wishes(model, data, tmp_path, recipe=short, proofs=0))
    result = run(wishes(model, data, tmp_path, recipe={**short, "seed": 1}, proofs=0, fresh=True))
    assert result.state.step == 2


def test_rows_read_in_turn_give_the_same_step(model: str, data: Path, tmp_path: Path) -> None:
    short = {"steps": 3, "evaluate_every": 3}
    run(wishes(model, data, tmp_path / "whole", recipe=short, proofs=0))
    run(wishes(model, data, tmp_path / "parts", recipe=short, proofs=0, micro=1))
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours if name.startswith("weight."))


def test_training_stops_where_it_no_longer_helps(model: str, data: Path, tmp_path: Path) -> None:
    recipe = {"learning_rate": 0.0, "evaluate_every": 1, "patience": 2, "steps": 50}
    result = run(wishes(model, data, tmp_path, recipe=recipe, proofs=0))
    assert result.done
    assert result.state.step == 2
    assert result.state.stopped == "no better for 2 evaluations"


def test_out_of_memory_says_what_to_do_and_loses_nothing(
    trained: Result, model: str, data: Path, tmp_path: Path
) -> None:
    lesson, calls = Teacher.lesson, []

    def full(self: Teacher, rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 20:
            raise torch.OutOfMemoryError
        return lesson(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "lesson", full)
        with pytest.raises(fit.OutOfMemory, match="with 4 rows at once; give the same command with --micro 2"):
            run(wishes(model, data, tmp_path))
    assert run(wishes(model, data, tmp_path)).done
    assert same(tmp_path, trained.output)


def test_answers_are_the_targets_own(model: str, data: Path, tmp_path: Path) -> None:
    """What is regenerated is learned from, and an interrupted generation goes on."""
    wished = wishes(model, data, tmp_path, regenerate="plain", limit=20, proofs=0, recipe={"steps": 1})
    run(replace(wished, new_tokens=12))
    path = tmp_path / "answers.jsonl"
    whole = path.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 20
    with fastllm_core.load(model, "plain", config={"forward": "eager"}, dtype="float32") as pipeline:
        prompt = rows[3]["tokens"][: rows[3]["prompt"]]
        answer = pipeline.generate(prompt, max_new_tokens=12, temperature=0.0).token_ids
    assert tuple(rows[3]["tokens"]) == (*prompt, *answer)
    path.write_text(whole[: len(whole) * 2 // 3])
    (tmp_path / state.FILE).unlink()
    run(replace(wished, new_tokens=12))
    assert path.read_text() == whole


def test_a_method_without_a_trainer_is_named(model: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginNotFound, match="kangaro"):
        run(replace(wishes(model, data, tmp_path), method="kangaro"))


def test_an_unknown_option_is_named(model: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set exit: .* exit_layer: The adapter reads"):
        run(replace(wishes(model, data, tmp_path), options={"exit": "2"}))


def test_the_teacher_reads_as_the_model_does(model: str) -> None:
    """Packed rows: hidden states and logits of each document are those of the document alone."""
    from fastllm_plugin_train.data import Text
    from fastllm_plugin_train.rows import packed

    texts = [Text([5, 9, 33, 2, 8], [True] * 5), Text([7, 7, 3], [True] * 3)]
    with fastllm_core.load(model, "plain", tokenizer=tiny_tokenizer(), dtype="float32") as pipeline:
        teacher = Teacher(pipeline.engine.parts.network, (2,))
        lesson = teacher.lesson(packed([texts], 10))
        for text, start in zip(texts, (0, 5), strict=True):
            alone = pipeline.target.model(torch.tensor([text.tokens]), output_hidden_states=True)
            end = start + len(text.tokens)
            assert torch.allclose(lesson.logits[0, start:end], alone.logits[0], atol=1e-4)
            assert torch.allclose(lesson.hidden[2][0, start:end], alone.hidden_states[2][0], atol=1e-5)
