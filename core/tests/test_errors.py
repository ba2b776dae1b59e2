"""The tree of errors that the docstring draws is the tree that exists."""

from __future__ import annotations

import re

import fastllm_core
from fastllm_core import errors


def drawn() -> dict[str, str | None]:
    """Parent by class, from the tree in the docstring."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ |`-]*)([A-Z]\w+)(  |$)", line)
        if match:
            indent, name = len(match[1]), match[2]
            above = [(depth, known) for depth, known in above if depth < indent]
            parents[name] = above[-1][1] if above else None
            above.append((indent, name))
    return parents


def test_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    classes = {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    bases = {name: value.__base__.__name__ if name != "FastllmError" else None for name, value in classes.items()}  # type: ignore[union-attr]
    assert drawn() == bases


def test_every_error_is_public_and_documented() -> None:
    for name in drawn():
        assert name in fastllm_core.__all__
        assert getattr(errors, name).__doc__


def test_public_names_are_sorted_and_exist() -> None:
    assert list(fastllm_core.__all__) == sorted(fastllm_core.__all__)
    assert set(fastllm_core.__all__) <= set(dir(fastllm_core))
