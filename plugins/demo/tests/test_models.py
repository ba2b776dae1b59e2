"""The registered models: what they say about themselves, and the folders they give."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fastllm_core import ModelError
from fastllm_plugin_demo import cache, models
from fastllm_plugin_demo.grow import main
from fastllm_plugin_demo.models import DEMO, DEMO_100M, DRAFTER, DRAFTER_512, GROWN, Grown, Shipped
from fastllm_plugin_demo.shape import Shape

SHIPPED = [DEMO, DRAFTER, DRAFTER_512]
TINY = Grown("demo-tiny", "for tests", Shape(256, 13, 520, 8, 4), DEMO)

BUILD_TINY = """
from fastllm_plugin_demo.grow import main
from fastllm_plugin_demo.models import DEMO, Grown
from fastllm_plugin_demo.shape import Shape
print(Grown("demo-tiny", "for tests", Shape(256, 13, 520, 8, 4), DEMO).path())
"""


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_names_are_registered() -> None:
    found = {entry.name: entry.value for entry in entry_points(group="fastllm.models")}
    expected = {
        "demo": "DEMO",
        "demo-drafter": "DRAFTER",
        "demo-drafter-512": "DRAFTER_512",
        "demo-100m": "DEMO_100M",
        "demo-350m": "DEMO_350M",
        "demo-1b": "DEMO_1B",
        "demo-kangaroo": "KANGAROO",
        "demo-100m-kangaroo": "KANGAROO_100M",
        "demo-350m-kangaroo": "KANGAROO_350M",
        "demo-1b-kangaroo": "KANGAROO_1B",
        "demo-medusa": "MEDUSA",
        "demo-100m-medusa": "MEDUSA_100M",
        "demo-350m-medusa": "MEDUSA_350M",
        "demo-1b-medusa": "MEDUSA_1B",
    }
    for name, attribute in expected.items():
        assert found[name] == f"fastllm_plugin_demo.models:{attribute}"
        assert hasattr(models, attribute)


def test_targets_recommend_a_method_and_drafters_none() -> None:
    for target in (DEMO, *GROWN.values()):
        assert target.method == "speculative"
        assert target.options["speculative"] == {"draft_model": "demo-drafter"}
        assert target.options["uag"] == {"draft_model": "demo-drafter-512"}
    for drafter in (DRAFTER, DRAFTER_512):
        assert drafter.method is None
        assert drafter.options == {}


def test_import_and_shipped_folders_need_no_torch() -> None:
    code = "import sys; from fastllm_plugin_demo.models import DEMO; DEMO.path(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model", SHIPPED, ids=lambda model: model.folder)
def test_shipped_folder_is_complete_and_loads(model: Shipped) -> None:
    folder = model.path()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card
    assert "Provenance" in card
    assert "## Limits" in card
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.isfinite(loaded(torch.tensor([[1, 300, 301]])).logits).all()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Once upon a time")["input_ids"], skip_special_tokens=True) == "Once upon a time"


def test_grown_folder_is_a_model_folder(cache_root: Path) -> None:
    folder = TINY.path()
    assert folder.parent == cache_root / "models"
    assert folder.name.startswith("demo-tiny-")
    grown = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    small = AutoModelForCausalLM.from_pretrained(DEMO.path(), dtype="auto")
    assert grown.dtype == torch.bfloat16
    ids = torch.tensor([[1, 300, 301, 302]])
    with torch.no_grad():  # width 256: the norms' factor is not a power of two, hence rounded in bfloat16
        assert torch.allclose(grown.float()(ids).logits, small.float()(ids).logits, atol=0.5)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (DEMO.path() / name).read_bytes()
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1, 2]
    assert "*grown*" in (folder / "README.md").read_text(encoding="utf-8")


def test_second_call_builds_nothing(cache_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = TINY.path()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"building demo-tiny (grown from stories-6m-4096 to 9M parameters) in {folder}"]
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert TINY.path() == folder
    assert capsys.readouterr().err == ""
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_recipe_gets_another_folder(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Grown(TINY.name, TINY.description, TINY.shape, DEMO, seed=1)
    names = {TINY._recipe_hash(), other._recipe_hash(), DEMO_100M._recipe_hash()}
    monkeypatch.setattr(models, "FORMAT", models.FORMAT + 1)
    assert len(names | {TINY._recipe_hash()}) == 4


def test_builds_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for root in ("one", "two"):
        monkeypatch.setenv("FASTLLM_CACHE", str(tmp_path / root))
        weights.append((TINY.path() / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_build_leaves_nothing(
    cache_root: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupted(self: Grown, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise interruption

    monkeypatch.setattr(Grown, "_build", interrupted)
    with pytest.raises(interruption):
        TINY.path()
    assert list((cache_root / "models").iterdir()) == []


def test_damaged_folder_is_built_again(cache_root: Path) -> None:
    folder = TINY.path()
    (folder / "model.safetensors").unlink()
    assert TINY.path() == folder
    assert (folder / "model.safetensors").is_file()
    assert list(folder.parent.iterdir()) == [folder]


def test_only_abandoned_builds_are_swept(cache_root: Path) -> None:
    old, young = (cache_root / "models" / f"{cache.PART}{age}" for age in ("old", "young"))
    for part in (old, young):
        part.mkdir(parents=True)
    long_ago = time.time() - 2 * cache.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    TINY.path()
    assert not old.exists()
    assert young.exists()


def test_two_processes_at_once_both_end_well(cache_root: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", BUILD_TINY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert len({stdout for stdout, _ in results}) == 1
    assert [path.name for path in (cache_root / "models").iterdir()] == [Path(results[0][0].strip()).name]


def test_slower_of_two_builds_takes_the_other_ones_folder(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Grown._build

    def overtaken(self: Grown, folder: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Grown, "_build", build)
            self.path()
        build(self, folder)

    monkeypatch.setattr(Grown, "_build", overtaken)
    folder = TINY.path()
    assert list(folder.parent.iterdir()) == [folder]


def test_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FASTLLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot keep demo-tiny-.*FASTLLM_CACHE") as caught:
        TINY.path()
    assert "\n" not in str(caught.value)


def test_full_disk_is_said_before_any_work(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nearly_full = SimpleNamespace(free=5_000_000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: nearly_full)
    monkeypatch.setattr(Grown, "_build", lambda *_: pytest.fail("built all the same"))
    with pytest.raises(ModelError, match=r"MB are free; .* make room"):
        TINY.path()
    assert list((cache_root / "models").iterdir()) == []


def test_command_line_prints_the_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["grow", "demo-100m"])
    monkeypatch.setattr(Grown, "path", lambda model: Path("kept") / model.name)
    assert main() == 0
    assert capsys.readouterr() == (f"{Path('kept/demo-100m')}\n", "")


def test_command_line_says_one_line_if_it_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Grown) -> Path:
        raise ModelError("no room")

    monkeypatch.setattr(sys, "argv", ["grow", "demo-100m"])
    monkeypatch.setattr(Grown, "path", fail)
    assert main() == 2
    assert capsys.readouterr() == ("", "no room\n")


def test_command_line_refuses_an_unknown_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["grow", "demo-2m"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "demo-100m" in capsys.readouterr().err


def test_command_line_grows_another_model_to_a_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_heads = replace(TINY, shape=Shape(256, 13, 520, 9, 3))
    monkeypatch.setitem(GROWN, "demo-tiny", small_heads)
    words = ["grow", "demo-tiny", "--source", str(DEMO.path()), "--output", str(tmp_path / "grown")]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 2
    assert "query heads per key head" in capsys.readouterr().err
    monkeypatch.setitem(GROWN, "demo-tiny", TINY)
    assert main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 'grown'}\n"
    ids = torch.tensor([[1, 400, 17, 2000]])
    with torch.no_grad():
        small, large = (AutoModelForCausalLM.from_pretrained(each)(ids).logits for each in (DEMO.path(), words[-1]))
    assert (small - large).abs().max() < 0.3 * small.abs().max()
    assert large.argmax(-1).tolist() == small.argmax(-1).tolist()
    assert main() == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", words[:4])
    with pytest.raises(SystemExit, match="2"):
        main()


@pytest.mark.slow
def test_demo_100m_is_built_in_seconds(cache_root: Path) -> None:
    command = [sys.executable, "-m", "fastllm_plugin_demo.grow", "demo-100m"]
    start = time.monotonic()
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 30
    assert Path(built.stdout.strip()) == DEMO_100M.path()
    assert len(built.stderr.splitlines()) == 1
