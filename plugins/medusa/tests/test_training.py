"""From files to heads, and to a target of their own: what is written, what is foretold, and runs that are stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fastllm_core
from fastllm_core import ModelError, TargetIdentity, load_head
from fastllm_core.testing import tiny_model, tiny_tokenizer
from fastllm_plugin_train import fit, state
from fastllm_plugin_train.session import Result, Wishes, session

RECIPE: dict[str, Any] = {
    "steps": 24,
    "batch": 4,
    "length": 48,
    "learning_rate": 1e-2,
    "warmup": 2,
    "evaluate_every": 8,
    "held_out": 0.2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny random Llama."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of letters that mostly follow each other in the same way, one a line."""
    rng = random.Random(0)
    lines = []
    for _ in range(120):
        begin = rng.randrange(8)
        lines.append("".join("abcdefgh"[(begin + 3 * place) % 8] for place in range(rng.randint(8, 40))))
    path = tmp_path_factory.mktemp("data") / "texts.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def wishes(model: str, data: Path, output: Path, options: dict[str, str], **given: Any) -> Wishes:
    settings: dict[str, Any] = {"model": model, "dtype": "float32", "device": "cpu"}
    return Wishes(
        method="medusa",
        config=fastllm_core.load_config(None, settings),
        data=[data],
        output=output,
        options={"heads": "3", **options},
        recipe={**RECIPE, **given.pop("recipe", {})},
        **{"proofs": 6, "new_tokens": 40, "draft_length": 6, "save_every": 5, **given},
    )


def run(wished: Wishes) -> Result:
    return session(wished, say=lambda line: None)


FROZEN = {"nodes": "7"}
ADAPTED = {"joint": "lora", "lora_rank": "4", "nodes": "5", "coefficient": "0.2"}


@pytest.fixture(scope="module")
def frozen(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(wishes(model, data, tmp_path_factory.mktemp("frozen"), FROZEN))


@pytest.fixture(scope="module")
def adapted(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(wishes(model, data, tmp_path_factory.mktemp("adapted"), ADAPTED))


def same(one: Path, two: Path) -> bool:
    ours, theirs = load_file(one / state.FILE), load_file(two / state.FILE)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_heads_learn_and_generation_accepts_what_was_foretold(frozen: Result) -> None:
    first, last = frozen.state.evaluations[0], frozen.state.evaluations[-1]
    assert last["loss"] < first["loss"] - 0.1
    assert last["nodes"] == 7
    assert last["tokens_per_round"] >= last["chain"]
    proof = frozen.proof
    assert proof is not None
    assert proof.same_text == proof.texts == 6
    assert proof.measured == proof.foretold
    assert proof.measured.accepted_at[0] > 0
    assert proof.measured.drafted_at[0] > proof.measured.rounds, "a tree has more than one first draft"


def test_what_is_logged_of_every_head(frozen: Result) -> None:
    told = json.loads((frozen.output / "curves.json").read_text())
    for each in told["evaluations"]:
        assert len(each["figures"]["loss of each head"]) == len(each["accuracies"]) == 3
    best = min(told["evaluations"], key=lambda each: each["loss"])
    assert load_head(str(frozen.output)).settings["accuracies"] == best["accuracies"]
    picture = (frozen.output / "curves.svg").read_text()
    assert all(title in picture for title in ("loss of each head", "top-1 of each draft", "top-5 of each draft"))
    card = (frozen.output / "README.md").read_text()
    assert "--set options.medusa.heads=FOLDER" in card
    assert "| top-1 of each draft |" in card
    assert "| drafted tokens of a round | 7 | 7 |" in card


@pytest.mark.parametrize("kind", ["frozen", "adapted"])
def test_a_run_that_stops_anywhere_ends_with_the_same_weights(
    kind: str, model: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained: Result = request.getfixturevalue(kind)
    options = FROZEN if kind == "frozen" else ADAPTED
    whole = fit.fit

    def stopping(run_: Any, watcher: Any, wants: Any) -> Any:
        return whole(run_, watcher, lambda: watcher.progress.tasks[0].completed >= 11)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastllm_plugin_train.session.fit", stopping)
        assert run(wishes(model, data, tmp_path, options)).state.step == 11
    result = run(wishes(model, data, tmp_path, options))
    assert result.done
    assert same(tmp_path, trained.output)
    assert result.state.evaluations == trained.state.evaluations


def test_a_tuned_target_comes_with_its_heads(adapted: Result, model: str) -> None:
    """Generation from the new folder is its own plain decoding; the model it came from is refused."""
    folder = adapted.output / fit.TARGET
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    head = load_head(str(adapted.output))
    assert head.target.model == f"{adapted.output.name}/{fit.TARGET}"
    assert head.target.body
    proof = adapted.proof
    assert proof is not None
    assert proof.same_text == proof.texts == 6
    assert proof.measured == proof.foretold
    settings = {"forward": "eager"}
    with fastllm_core.load(str(folder), "plain", config=settings, dtype="float32") as pipeline:
        mine = TargetIdentity.of(pipeline.engine.parts.network, body=True)
    assert head.target.mismatch(mine) is None
    with pytest.raises(ModelError, match="it is the model before tuning"):
        fastllm_core.load(model, "medusa", config=settings, dtype="float32", heads=str(adapted.output))


def test_what_a_tuned_target_lost_is_told(adapted: Result) -> None:
    first, last = adapted.state.evaluations[0], adapted.state.evaluations[-1]
    assert first["figures"]["loss of the target"] > 0
    assert last["figures"]["loss of each head"][0] < first["figures"]["loss of each head"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frozen", "adapted"])
def test_a_killed_run_ends_with_the_same_weights(
    kind: str, model: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained: Result = request.getfixturevalue(kind)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import test_training as t\n"
        "from fastllm_plugin_train import fit\n"
        "import time; step = fit._step\n"
        "fit._step = lambda *a: (time.sleep(0.1), step(*a))[1]\n"
        "t.run(t.wishes(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), t.FROZEN if sys.argv[5] == 'frozen'"
        " else t.ADAPTED))\n"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), model, str(data), str(tmp_path), kind]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    while not (tmp_path / state.FILE).exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.uniform(0.1, 0.9))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = run(wishes(model, data, tmp_path, FROZEN if kind == "frozen" else ADAPTED))
    assert result.done
    assert same(tmp_path, trained.output)
