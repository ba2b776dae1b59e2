"""The compiled back end without a compiler: every program is the step itself, run as Python.

It takes the arguments that a compiled program takes, in the same order, so everything around programs is tested in a
moment: which there are, what they are given, where answers go. That they compute the same when they are compiled is
another test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..compiled import NARROWEST, Compiled, LoadedProgram
from ..constants import Constant
from ..step import Step


class UnrolledProgram(LoadedProgram):
    """A step in place of its program."""

    def __init__(self, step: Step) -> None:
        """step: what to run."""
        self.step = step

    def run(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Take the flat arguments apart, check what a compiled program cannot do without, and run the step."""
        assert all(argument.is_contiguous() for argument in arguments), "a program takes contiguous arguments"
        form, given = self.step.form, iter(arguments)
        entry, positions, slots, mask = (next(given) for _ in range(4))
        keyed = next(given) if form.keyed else None
        read = next(given) if self.step.reads else None
        assert form.steps or entry.shape[1] >= NARROWEST, "an open size cannot be 1"
        assert (entry.shape[0] > 1) is form.many, "one text and several have programs of their own"
        return list(self.step(entry, positions, slots, mask, keyed, read, list(given)))


class Unrolled(Compiled):
    """A `Compiled` whose compiler writes a word and whose programs are `UnrolledProgram`s."""

    steps: ClassVar[dict[str, Step]] = {}
    """By file name, for the whole process: as programs on disk, other back ends find them."""

    def obstacle(self) -> None:
        """None: nothing is needed."""

    def compile(self, step: Step, path: Path) -> Mapping[str, Any]:
        """Remember the step."""
        self.steps[path.name] = step
        path.write_text("unrolled", encoding="utf-8")
        return {"export_seconds": 0.0, "compile_seconds": 0.0}

    def load(self, path: Path, weights: Sequence[Constant] = ()) -> UnrolledProgram:
        """The step of that file."""
        return UnrolledProgram(self.steps[path.name])
