"""The command line, as far as it needs no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli

from fastllm_core import cli
from fastllm_core.cli.demo import Comparison

if TYPE_CHECKING:
    from conftest import FakeSite


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from fastllm_core.cli import foreign

    foreign.names.cache_clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        output = capsys.readouterr()
        code: Any = caught.value.code
        return code, output.out, output.err

    return run


COMMANDS = ["generate", "demo", "device", "plugins", "plugins list", "plugins show", "config init", "config show"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(run: Any, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert command == "plugins" or f"  fastllm {command}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "bogus"),
        (["generate", "--bogus"], "--bogus"),
        (["generate"], "no prompt"),
        (["generate", "x", "--set", "draft.lenght=3"], "draft.lenght: unknown key"),
        (["generate", "x", "--set", "nonsense"], "KEY=VALUE"),
        (["generate", "x", "--temperature", "warm"], "--temperature"),
        (["generate", "x", "--logit-bias", "17"], "write KEY=VALUE, such as --logit-bias 17=-2.5"),
        (["generate", "x", "--stream", "--json"], "choose one"),
        (["generate", "--file", "nope.txt"], "nope.txt"),
        (["generate", "x", "--config", "nope.toml"], "nope.toml"),
        (["plugins", "list", "--kind", "gadget"], "there are method, part, model, command"),
        (["plugins", "show", "kangaro"], "no plugin 'kangaro'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Any, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_lists(run: Any, site: FakeSite) -> None:
    site.plugin("alpha", "raise RuntimeError")
    site.plugin("beta", "raise RuntimeError", kind="models")
    for arguments in ((), ("--kind", "method")):
        code, out, _ = run("plugins", "list", *arguments)
        assert code == 0
        assert out.startswith("NAME")
        assert "fastllm-plugin-alpha" in out
        assert ("fastllm-plugin-beta" in out) == (not arguments)
    code, out, _ = run("plugins", "list", "--json")
    listed = {plugin["name"]: plugin for plugin in json.loads(out)}
    assert listed["alpha"]["kind"] == "method"
    assert listed["beta"]["kind"] == "model"
    assert set(listed["alpha"]) == {"name", "kind", "distribution", "version", "entry_point", "origin"}


def test_a_group_alone_shows_its_help_and_no_error(run: Any) -> None:
    code, out, err = run("plugins")
    assert code == 2
    assert "Commands" in out + err
    assert "error" not in err


def test_show(run: Any, site: FakeSite) -> None:
    source = '''
        from pydantic import Field
        from fastllm_core.hookspecs import hookimpl
        from fastllm_core.options import Options
        class O(Options):
            """x"""
            exit_layer: int | None = Field(default=None, description="Where to leave.")
            draft_model: str = Field(description="Whom to ask.")
        class Plugin:
            """Hops."""
            api_version, Options = 1, O
            def __init__(self, options): ...
            @hookimpl
            def fastllm_make_drafter(self, context): ...
    '''
    site.plugin("hopper", source)
    code, out, _ = run("plugins", "show", "hopper")
    assert code == 0
    for words in (
        "Hops.",
        "fastllm_make_drafter",
        "exit_layer",
        "integer or unset",
        "Where to leave.",
        "(must be given)",
    ):
        assert words in out
    code, out, _ = run("plugins", "show", "hopper", "--json")
    assert json.loads(out)["hooks"] == ["fastllm_make_drafter"]
    assert json.loads(out)["options"][1]["name"] == "draft_model"


def test_broken_plugin_is_a_failure_only_where_it_is_asked_for(run: Any, site: FakeSite) -> None:
    site.plugin("broken", "import nosuchmodule")
    assert run("plugins", "list")[0] == 0
    code, _, err = run("plugins", "show", "broken")
    assert code == 1
    assert err.startswith("error: plugin 'broken' (fastllm-plugin-broken 0.1.0")
    assert err.count("\n") == 1
    code, _, err = run("plugins", "show", "broken", "--debug")
    assert code == 1
    assert "Traceback" in err


def test_commands_of_plugins(run: Any, site: FakeSite) -> None:
    source = """
        import typer
        app = typer.Typer()
        @app.command()
        def fast(count: int = 1): print("fast", count)
        @app.command()
        def slow(): raise ValueError("too slow")
        def hello(name: str): print("hello", name)
    """
    names = {"race": "mod_race:app", "hello": "mod_race:hello", "gone": "nosuchmodule:x"}
    site.install("fastllm-plugin-race", {"fastllm.commands": names}, {"mod_race": source})
    code, out, _ = run("--help")
    assert code == 0
    assert "(from fastllm-plugin-race)" in out
    assert "mod_race" not in sys.modules
    assert run("race", "fast", "--count", "3")[:2] == (0, "fast 3\n")
    assert run("hello", "you")[:2] == (0, "hello you\n")
    assert run("race", "slow") == (1, "", "error: ValueError: too slow (--debug shows where)\n")
    assert "Traceback" in run("race", "slow", "--debug")[2]
    assert "Traceback" in run("hello", "you", "more", "--debug")[2]
    code, _, err = run("gone")
    assert code == 1
    assert "failed to import" in err


def test_packages_share_a_group_of_commands(run: Any, site: FakeSite) -> None:
    source = "def one(count: int = 1): print('one', count)"
    site.install("fastllm-plugin-a", {"fastllm.commands": {"fit.one": "mod_a:one"}}, {"mod_a": source})
    source = "import typer\nmore = typer.Typer()\n@more.command()\ndef x(): print('x')\n@more.command()\ndef y(): 1 / 0"
    site.install("fastllm-plugin-b", {"fastllm.commands": {"fit.more": "mod_b:more"}}, {"mod_b": source})
    told = " ".join(run("--help")[1].replace("│", " ").split())
    assert "(from fastllm-plugin-a, fastllm-plugin-b)" in told
    assert "mod_a" not in sys.modules
    assert run("fit", "one", "--count", "3")[:2] == (0, "one 3\n")
    assert run("fit", "more", "x")[:2] == (0, "x\n")
    assert "Traceback" in run("fit", "more", "y", "--debug")[2]
    code, out, _ = run("fit", "--help")
    assert code == 0
    assert "one" in out
    assert "more" in out
    site.install("fastllm-plugin-c", {"fastllm.commands": {"fit.one": "mod_c:one"}}, {"mod_c": source})
    assert "2 installed packages offer 'fit.one'" in run("fit", "one")[2]


def test_config_commands(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("config", "init")[0] == 0
    assert tomli.loads((tmp_path / "fastllm.toml").read_text())["model"] == "demo"
    assert "--force" in run("config", "init")[2]
    assert run("config", "init", "--force")[0] == 0
    monkeypatch.setenv("FASTLLM_DRAFT__LENGTH", "3")
    code, out, _ = run("config", "show", "--set", "device=cpu")
    assert code == 0
    shown = tomli.loads(out)
    assert (shown["draft"]["length"], shown["device"]) == (3, "cpu")
    assert json.loads(run("config", "show", "--json")[1])["draft"]["length"] == 3
    assert json.loads(run("config", "schema")[1])["title"] == "Config"
    assert run("config", "init", "-")[1].startswith("# Configuration of fastllm")


def test_device(run: Any) -> None:
    code, out, _ = run("device", "--json")
    assert code == 0
    assert json.loads(out)["devices"][-1]["name"] == "cpu"
    assert "cpu" in run("device")[1]


@pytest.mark.parametrize(
    "arguments", ["plugins list", "plugins list --json", "--help", "generate --help", "config show"]
)
def test_quick_commands_import_no_torch(arguments: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom fastllm_core.cli import main\n"
        f"try: main({arguments.split()!r})\nexcept SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


def test_interrupt_and_closed_pipe_are_quiet(tmp_path: Path) -> None:
    for raised, expected in (("KeyboardInterrupt", 130), ("BrokenPipeError(32, 'x')", 141)):
        code = (
            "from fastllm_core.cli import failures\nimport sys\n"
            f"def run(): raise {raised}\nsys.exit(failures.guarded(run))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (expected, b"")


def test_line_of_the_demo() -> None:
    comparison = Comparison([2.0, 2.1, 2.4], [1.0, 1.0, 1.0], tokens=370, rounds=100, compared=9)
    assert comparison.line("speculative") == (
        "speculative: 3.7 tokens/round, 2.1x plain (2.0..2.4, 3 runs), output identical"
    )
    comparison.differing = 1
    assert comparison.line("speculative").endswith("output differs in 1 of 9")
    assert comparison.line("m", ["typical acceptance"]).endswith("differs in 1 of 9; lossy: typical acceptance")
