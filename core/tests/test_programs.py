"""The folder of compiled programs: whole or not there, its owner's alone, and never another key's."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fastllm_core.constants import FACT, FOLDER, told, write
from fastllm_core.errors import ConfigError
from fastllm_core.programs import LOCK, PROGRAM, RECORD, ProgramFolder, digest_of, programs_folder, size_of

KEY = {"model": "m", "widths": [1, 2]}


def writing(size: int = 10, **facts: Any) -> Any:
    def build(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"x" * size)
        return {"name": "m, one text", **facts}

    return build


def reading(*weights: bytes) -> Any:
    """A program of ten bytes that reads weights."""

    def build(path: Path) -> Mapping[str, Any]:
        apart = path.parent / FOLDER
        apart.mkdir()
        tensors = [torch.frombuffer(bytearray(weight), dtype=torch.uint8) for weight in weights]
        return {**writing()(path), FACT: told(write(f"w{at}", tensor, apart) for at, tensor in enumerate(tensors))}

    return build


def never(path: Path) -> Mapping[str, Any]:
    raise AssertionError("built again")


@pytest.fixture
def folder(tmp_path: Path) -> ProgramFolder:
    return ProgramFolder(tmp_path / "programs")


def test_what_was_kept_is_found_and_not_built_again(folder: ProgramFolder) -> None:
    assert not folder
    assert folder.find(KEY) is None
    made = folder.keep(KEY, writing(compile_seconds=3))
    assert folder
    assert made.path.read_bytes() == b"x" * 10
    assert (made.name, made.bytes, made.facts["compile_seconds"]) == ("m, one text", 10, 3)
    assert folder.keep(KEY, never).path == made.path
    assert ProgramFolder(folder.folder).find(dict(reversed(KEY.items()))) is not None
    assert [program.path for program in folder] == [made.path]


def test_another_key_is_another_program(folder: ProgramFolder) -> None:
    folder.keep(KEY, writing())
    assert folder.find({**KEY, "widths": [1, 3]}) is None
    record = folder.folder / f"{digest_of(KEY)}{RECORD}"
    record.write_text(record.read_text().replace('"m"', '"other"'))
    assert folder.find(KEY) is None, "the name alone was believed"


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "record"])
def test_a_harmed_program_is_not_run_but_built_again(folder: ProgramFolder, harm: str) -> None:
    path = folder.keep(KEY, writing()).path
    if harm == "cut":
        path.write_bytes(b"x" * 9)
    elif harm == "changed":
        path.write_bytes(b"x" * 9 + b"y")
    elif harm == "gone":
        path.unlink()
    else:
        path.with_suffix(RECORD).write_text("{")
    assert folder.find(KEY) is None
    assert folder.keep(KEY, writing()).path.read_bytes() == b"x" * 10


def test_a_build_that_fails_leaves_nothing(folder: ProgramFolder) -> None:
    def fail(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        folder.keep(KEY, fail)
    assert not folder
    assert [path.name for path in folder.folder.iterdir() if not path.name.endswith(LOCK)] == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners")
def test_it_is_the_owners_alone(folder: ProgramFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.keep(KEY, writing())
    assert folder.folder.stat().st_mode & 0o777 == 0o700
    folder.folder.chmod(0o770)
    assert folder.find(KEY) is None
    with pytest.raises(ConfigError, match="chmod 700"):
        folder.keep(KEY, never)
    folder.folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "somebody else" in str(folder.refusal())
    assert folder.find(KEY) is None


def test_the_longest_unused_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    folder = ProgramFolder(tmp_path / "programs", limit_bytes=25)
    keys = [{"n": n} for n in range(3)]
    for age, key in zip((300, 200), keys, strict=False):
        path = folder.keep(key, writing()).path.with_suffix(RECORD)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert folder.find(keys[0]), "finding it is using it"
    folder.keep(keys[2], writing())
    assert [bool(folder.find(key)) for key in keys] == [True, False, True]
    assert ProgramFolder(folder.folder, limit_bytes=1).keep({"n": 9}, writing()).path.exists(), "the newest stays"


def test_programs_share_weights(folder: ProgramFolder) -> None:
    one = folder.keep({"n": 1}, reading(b"shared", b"own"))
    two = folder.keep({"n": 2}, reading(b"shared", b"another"))
    assert len(list((folder.folder / FOLDER).iterdir())) == 3
    assert [size_of([program]) for program in (one, two)] == [10 + 6 + 3, 10 + 6 + 7]
    assert size_of(folder) == 10 + 10 + 6 + 3 + 7


def test_weights_go_with_the_last_program_that_reads_them(tmp_path: Path) -> None:
    folder = ProgramFolder(tmp_path / "programs", limit_bytes=50)
    path = folder.keep({"n": 1}, reading(b"shared", b"o" * 20)).path.with_suffix(RECORD)
    os.utime(path, (path.stat().st_mtime - 100,) * 2)
    folder.keep({"n": 2}, reading(b"shared", b"p" * 20))
    assert not folder.find({"n": 1})
    assert sorted(path.read_bytes()[:1] for path in (folder.folder / FOLDER).iterdir()) == [b"p", b"s"]
    assert folder.find({"n": 2})
    assert folder.clear() == (1, 10 + 6 + 20)
    assert [*folder.folder.iterdir()] == []


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_harmed_weights_are_not_read_but_written_again(folder: ProgramFolder, harm: str) -> None:
    folder.keep(KEY, reading(b"weights"))
    (path,) = (folder.folder / FOLDER).iterdir()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": b"weight", "changed": b"weighty"}[harm])
    assert folder.find(KEY) is None
    assert folder.keep({"n": 1}, reading(b"weights")).path.is_file(), "another program that shares them mends them"
    assert path.read_bytes() == b"weights"
    assert folder.find(KEY)


def test_a_record_with_no_list_of_weights_is_not_believed(folder: ProgramFolder) -> None:
    record = folder.keep(KEY, reading(b"weights")).path.with_suffix(RECORD)
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "facts": {**told["facts"], FACT: [{"name": "w"}]}}))
    assert folder.find(KEY) is None
    assert folder.keep(KEY, reading(b"weights")).weights


def test_two_at_once_build_once(folder: ProgramFolder) -> None:
    built = []
    both = threading.Barrier(2)

    def build(path: Path) -> Mapping[str, Any]:
        built.append(path)
        return writing()(path)  # type: ignore[no-any-return]

    def keep() -> None:
        both.wait()
        ProgramFolder(folder.folder).keep(KEY, build)

    threads = [threading.Thread(target=keep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_clearing_deletes_all(folder: ProgramFolder) -> None:
    assert folder.clear() == (0, 0)
    folder.keep(KEY, writing())
    folder.keep({"n": 1}, writing(5)).path.with_suffix(".pt2").write_bytes(b"of an older version")
    assert folder.clear() == (2, 15)
    assert [*folder.folder.iterdir()] == []


def test_a_folder_that_cannot_be_made_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="FASTLLM_COMPILED"):
        ProgramFolder(tmp_path / "file" / "programs").keep(KEY, never)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTLLM_COMPILED", str(tmp_path / "own"))
    monkeypatch.setenv("FASTLLM_CACHE", str(tmp_path))
    assert programs_folder() == tmp_path / "own"
    monkeypatch.delenv("FASTLLM_COMPILED")
    assert programs_folder() == tmp_path / "programs"
    monkeypatch.delenv("FASTLLM_CACHE")
    assert programs_folder().name == "programs"
    assert programs_folder().is_absolute()


def test_records_are_readable(folder: ProgramFolder) -> None:
    path = folder.keep(KEY, writing()).path
    record = json.loads(path.with_suffix(RECORD).read_text())
    assert record["key"] == KEY
    assert path.suffix == PROGRAM
