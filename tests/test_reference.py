"""The authors' reference is made from the code's own signatures and docstrings, so it cannot drift from them.

`python tests/test_reference.py` rewrites it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fastllm_core

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "core" / "src" / "fastllm_core"
PAGE = ROOT / "docs" / "authors" / "reference.md"
HEAD = """# Reference

<!-- made from the code: python tests/test_reference.py -->

What a plugin may use: the names below come from `fastllm_core`, as `from fastllm_core import Draft`. Shapes: B
live rows in slot order, N drafted nodes, W = N + 1 rows of a verification, D tokens on the deepest path, T
key/value slots that a forward reads, V vocabulary, H hidden size, R rows of a forward. Row 0 of a verification
is the root, the last committed token; row i + 1 is node i.
"""
SECTIONS = {
    "Hooks": ("hookspecs", None),
    "What a plugin is given": ("context", ("Context",)),
    "Drafts, scores, verdicts": (
        "protocols",
        ("Proposal", "Guarantee", "Resume", "ExtraRows", "Draft", "Scores", "Verdict"),
    ),
    "Roles": ("protocols", ("Drafter", "Verifier", "Acceptor", "KVCache", "Observer")),
    "Live rows": ("batch", ("Row", "Batch")),
    "Ending a draft": ("confidence", ("Confidence",)),
    "The forward port": ("network", ("Network",)),
    "What goes in and comes out": ("port", ("Inputs", "Outputs", "Advance", "advanced")),
    "Where rows stand": ("layout", ("chain", "tree", "ancestors", "Slate")),
    "Reading tokens into a cache": ("prefill", ("read",)),
    "Acceptance rules": ("acceptance", ("match", "reject_chain", "reject_tree", "reject_block", "residual")),
    "Levels of a tree": ("verdicts", ("depths",)),
    "Sampling": ("sampling", ("warp", "draw")),
    "Families": ("adapters", ("Adapter",)),
    "How far back a layer looks": ("spans", ("Span",)),
    "Options": ("options", ("Options",)),
    "Trained heads": ("heads", ("Head", "TargetIdentity", "load_head")),
    "Training a head": ("lessons", ("Trainer", "Converter", "Published", "Lesson", "Judgement")),
    "Prompts to tune by": ("prompt_file", ("read_prompts",)),
}
"""Title: module, and which of its definitions; None for every hook."""


def page() -> str:
    return HEAD + "".join(f"\n## {title}\n{''.join(section(*what))}" for title, what in SECTIONS.items())


def section(module: str, names: tuple[str, ...] | None) -> Iterator[str]:
    tree = ast.parse((SOURCE / f"{module}.py").read_text(encoding="utf-8"))
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for name in names or [name for name in found if name.startswith("fastllm_")]:
        node = found[name]
        yield f"\n### `{name}`\n\n" + (described(node) if isinstance(node, ast.ClassDef) else function(node))


def function(node: ast.FunctionDef) -> str:
    return f"```text\n{signature(node)}\n```\n\n{ast.get_docstring(node) or ''}\n"


def described(node: ast.ClassDef) -> str:
    """A class: its docstring, its public attributes and its public methods."""
    parts = [f"{ast.get_docstring(node) or ''}\n"]
    attributes = list(attributes_of(node))
    if attributes:
        rows = "\n".join(f"| `{name}` | `{kind}` | {meaning} |" for name, kind, meaning in attributes)
        parts.append(f"\n| attribute | type | meaning |\n| --- | --- | --- |\n{rows}\n")
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and (not method.name.startswith("_") or method.name == "__init__"):
            text = " ".join((ast.get_docstring(method) or "").split())
            parts.append(f"\n- `{signature(method)}`\\\n  {text}\n")
    return "".join(parts)


def attributes_of(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    following = [*node.body[1:], None]
    for item, after in zip(node.body, following, strict=True):
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split()).replace("|", "\\|")
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_":
            default = "" if item.value is None else f" = {ast.unparse(item.value)}"
            kind = ast.unparse(item.annotation).replace("|", "\\|")
            yield item.target.id, f"{kind}{default if len(default) < 40 else ' = ...'}", text
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name) and item.targets[0].id[0] != "_":
            yield item.targets[0].id, ast.unparse(item.value), text


def signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def test_the_reference_is_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/test_reference.py"


def test_what_it_lists_is_public() -> None:
    listed = [name for _, names in SECTIONS.values() for name in names or ()]
    assert [name for name in listed if name not in fastllm_core.__all__] == []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
