"""Hashes of files, remembered only where the file cannot have changed since."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastllm_core import load, probe
from fastllm_core.digests import RACY_NS, Digests, state_of
from fastllm_core.errors import UnsupportedModel
from fastllm_core.testing.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no time of the last change")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if some seconds had passed since the files were written."""
    now = time.time_ns
    monkeypatch.setattr("fastllm_core.digests.time.time_ns", lambda: now() + 2 * RACY_NS)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Counting:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fastllm_core import digests

        self.times, read = 0, digests._sha256

        def counted(path: Path) -> str:
            self.times += 1
            return read(path)

        monkeypatch.setattr(digests, "_sha256", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_a_file_is_hashed_once(tmp_path: Path, later: None, reads: Counting) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    for _ in range(3):
        assert Digests(tmp_path).of_file(file) == hashlib.sha256(b"abc").hexdigest()
    assert reads.times == 1


@pytest.mark.parametrize("change", ["other bytes", "other bytes, old times", "another file in its place", "touched"])
def test_one_that_changed_is_hashed_again(tmp_path: Path, later: None, reads: Counting, change: str) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    Digests(tmp_path).of_file(file)
    before = file.stat()
    time.sleep(0.02)  # more than a tick of the file system's clock
    wanted = b"abc" if change == "touched" else b"abd"
    if change == "another file in its place":
        (tmp_path / "new").write_bytes(wanted)
        os.replace(tmp_path / "new", file)
    elif change != "touched":
        file.write_bytes(wanted)
    if change != "other bytes":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Digests(tmp_path).of_file(file) == hashlib.sha256(wanted).hexdigest()
    assert reads.times == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, reads: Counting) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert state_of(file) is None
    for _ in range(2):
        Digests(tmp_path).of_file(file)
    assert reads.times == 2
    assert not Digests(tmp_path).path.exists()


def test_lines_that_a_killed_process_left_are_passed_over(tmp_path: Path, later: None, reads: Counting) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    Digests(tmp_path).of_file(file)
    known = Digests(tmp_path).path
    known.write_text('["half\n7\n{}\n' + known.read_text())
    Digests(tmp_path).of_file(file)
    assert reads.times == 1


def test_no_folder_no_memory(tmp_path: Path, later: None) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert Digests(tmp_path / "absent").of_file(file) == hashlib.sha256(b"abc").hexdigest()
    assert not (tmp_path / "absent").exists()
    with pytest.raises(FileNotFoundError):
        Digests(tmp_path).of_file(tmp_path / "gone")


def test_weights_that_were_written_to_are_not_those_of_their_files(model_folder: Path) -> None:
    with load(str(model_folder), "plain", device="cpu", dtype="float32") as pipeline:
        loaded = pipeline.target
        assert loaded.origin is not None
        assert [file.suffix for file in loaded.origin.files_of(loaded.model)] == [".safetensors"]
        model: Any = loaded.model
        model.lm_head.weight.data = model.lm_head.weight.data.clone()
        assert loaded.origin.files_of(model) == ()


def test_a_model_that_was_loaded_in_inference_mode_has_files_that_nobody_vouches_for(model_folder: Path) -> None:
    """Its tensors do not count what is written to them."""
    with torch.inference_mode(), load(str(model_folder), "plain", device="cpu", dtype="float32") as pipeline:
        assert pipeline.target.origin is None
        assert pipeline.generate("one", max_new_tokens=2, ignore_eos=True).report.tokens == 2


def test_a_weight_written_in_place_is_noticed(model_folder: Path) -> None:
    with load(str(model_folder), "plain", device="cpu", dtype="float32") as pipeline, torch.no_grad():
        loaded = pipeline.target
        assert loaded.origin is not None
        next(iter(loaded.model.parameters())).mul_(2)
        assert loaded.origin.files_of(loaded.model) == ()


@pytest.mark.usefixtures("later")
def test_a_model_that_passed_is_not_asked_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLLM_COMPILED", str(tmp_path / "programs"))
    asked, ask = [], probe.check_whole
    monkeypatch.setattr(probe, "check_whole", lambda network: (asked.append(network), ask(network)))

    def shapes(**settings: Any) -> object:
        with load(model_folder, **settings) as pipeline:
            return pipeline.engine.parts.network.kv_shapes

    first = shapes()
    shapes()
    assert len(asked) == 2, "there is no folder to remember it in"
    (tmp_path / "programs").mkdir(mode=0o700)
    assert [shapes(), shapes(), shapes()] == [first] * 3
    assert len(asked) == 3
    shapes(dtype="float64")
    assert len(asked) == 4, "in another number format it is another model"
    tiny_model(num_hidden_layers=1, seed=1).save_pretrained(model_folder)
    shapes()
    assert len(asked) == 5, "other weights"
    (tmp_path / "programs").chmod(0o770)
    shapes()
    assert len(asked) == 6, "others may write there"


@pytest.mark.usefixtures("later")
def test_what_a_model_failed_is_asked_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLLM_COMPILED", str(tmp_path))
    tmp_path.chmod(0o700)
    model = tiny_model(num_hidden_layers=1)
    model.lm_head.weight.data[3, 3] = torch.nan
    model.save_pretrained(model_folder)
    for _ in range(2):
        with pytest.raises(UnsupportedModel, match="logits change"):
            load(model_folder)
