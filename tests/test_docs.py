"""The docs are true: every command and every Python block runs, and the configuration reference is the schema's.

`python tests/test_docs.py` rewrites the reference.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from fastllm_core.cli.app import run
from fastllm_core.config import config_schema

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "core/README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("plugins/*/README.md")]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
REFERENCE = ROOT / "docs" / "configuration.md"
MARKS = ("<!-- made from the schema: python tests/test_docs.py -->\n", "<!-- end -->")


def blocks(kind: str) -> list[Any]:
    """Code blocks of a kind; those of the benchmarks take minutes."""
    return [
        pytest.param(
            text, id=f"{page.relative_to(ROOT)}-{number}", marks=[pytest.mark.slow] * (page.stem == "benchmarks")
        )
        for page in PAGES
        for number, (language, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if language == kind
    ]


def reference() -> str:
    """The table of every key, from the schema."""
    schema = config_schema()
    rows = [
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        *rows_of(schema, schema.get("$defs", {})),
    ]
    return "\n".join(rows) + "\n"


def rows_of(schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> list[str]:
    rows = []
    for name, field in schema["properties"].items():
        inner = definitions.get(field.get("$ref", "").rpartition("/")[2])
        if inner:
            rows += rows_of(inner, definitions, f"{prefix}{name}.")
        else:
            default = "unset" if field.get("default") is None else f"`{toml(field['default'])}`"
            rows.append(f"| `{prefix}{name}` | {type_of(field)} | {default} | {field['description']} |")
    return rows


def type_of(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{toml(value)}`" for value in field["enum"])
    kinds = [part for part in field.get("anyOf", [field]) if part.get("type") != "null"]
    return str(kinds[0]["type"])


def toml(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value).replace("'", '"')


def page() -> str:
    text = REFERENCE.read_text(encoding="utf-8")
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    return head + MARKS[0] + reference() + MARKS[1] + tail


def test_the_configuration_reference_is_the_schema() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == page(), "run: python tests/test_docs.py"


@pytest.mark.parametrize("text", blocks("sh"))
def test_commands_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in text.replace("\\\n", " ").splitlines():
        command = shlex.split(line, comments=True)
        if command:
            check(command)


def check(command: list[str]) -> None:
    """Run a command of fastllm; of other commands, see that what they name exists."""
    if command[0] == "fastllm":
        assert not run(command[1:])
    elif command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif command[:2] == ["pip", "install"]:
        known = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
        assert all(name == "fastllm-core" or name.removeprefix("fastllm-plugin-") in known for name in command[2:])
    elif command[0] == "python":
        assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, str(ROOT / command[1]), *command[2:]]) == 0
    else:
        raise AssertionError(f"the docs show a command that no test knows how to run: {command}")


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "docs", "exec"), {})


@pytest.mark.parametrize("text", blocks("toml"))
def test_configuration_files_compose(text: str, tmp_path: Path) -> None:
    from fastllm_core.compose import select
    from fastllm_core.config import load_config

    path = tmp_path / "fastllm.toml"
    path.write_text(text, encoding="utf-8")
    assert select(load_config(path, environ={})).method


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(source: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", source.read_text(encoding="utf-8")):
        assert (source.parent / target).exists(), f"{source.relative_to(ROOT)} links to {target}"


if __name__ == "__main__":
    REFERENCE.write_text(page(), encoding="utf-8")
