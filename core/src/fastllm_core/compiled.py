"""The back end of programs that were compiled ahead of time, kept on disk, and loaded without a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from . import constants, identity
from .constants import Constant
from .errors import ConfigError, UnsupportedModel
from .memory import shortage
from .port import Advance, Answer, EagerRunner, Inputs, Stepping, watched
from .probe import TOLERANCE, relative_difference
from .slot_layers import CacheLayers, Layers, buffers_of
from .step import Form, Sizes, Step
from .strides import STRIDE
from .ties import Best
from .waiting import waiting

if TYPE_CHECKING:
    from .network import Network
    from .port import Passage, Runner
    from .programs import Program, ProgramFolder

NARROWEST: Final = 2
"""Rows of the narrowest forward of open size, which cannot be 1: a single row comes twice, into the same slot, where it
has no program of its own (hidden states that enter, part of the layers, a tree without nodes)."""
LONGEST: Final = 16
"""Tokens that one program goes on for at most: each makes it larger, and takes seconds to compile."""
QUICK_BYTES: Final = 1 << 25
"""Weights of a network for which several tokens in one call are worth one more program: in the time in which a
processor reads as much, a draft's way through Python between two rows takes 1 %, that of a plain round 10 %."""
Run = Callable[["LoadedProgram", "Passage", Inputs, tuple[Tensor, ...]], Answer]
"""How a program is given its arguments and its answers are read."""

log = logging.getLogger("fastllm")


class Compiled:
    """Runs what there is a program for; the rest is compiled first, or runs eagerly."""

    def __init__(self, folder: ProgramFolder, *, compiles: bool, draft_length: int = 5) -> None:
        """folder: where programs are kept.  compiles: whether to compile what is missing.

        draft_length: tokens of the longest draft.
        """
        self.folder = folder
        self.compiles = compiles
        chains = (1, STRIDE), (2, draft_length)
        self.chains = {(rows, steps) for rows, steps in chains if 1 < steps <= LONGEST}
        """Rows that enter and tokens that come out of what quick networks do at once: plain rounds, and a draft, before
        which two tokens may be missing in the drafter's cache. Other numbers would each be one more program."""
        self.taken: list[Program] = []
        """Programs that are in use."""
        self.missing: list[str] = []
        """What runs eagerly, in words."""
        self._warned: set[object] = set()

    def runner(self, network: Network) -> Runner:
        """Look for programs as forwards come. What cannot be named by a key runs eagerly."""
        unsafe = self.folder.refusal()
        unfit = identity.unknown_code(network) or (self.obstacle() if self.compiles else None)
        if unsafe or (unfit and self.compiles):  # without that, nobody asked for compiled forwards of an unfit network
            self.warn(f"{network.loaded.name} runs eagerly: {unsafe or unfit}")
        return EagerRunner(network) if unsafe or unfit else CompiledRunner(network, self)

    def obstacle(self) -> str | None:
        """Why nothing can be compiled here, None if it can."""
        from .compiler import obstacle

        return obstacle()

    def compile(self, step: Step, path: Path) -> Mapping[str, Any]:
        """Write a step's program to a file; see `compiler.compile_step`."""
        from .compiler import compile_step

        return compile_step(step, path)

    def load(self, path: Path, weights: Sequence[Constant]) -> LoadedProgram:
        """A program, once in this process."""
        program = _loaded.get(path)
        if program is None:
            needed = path.stat().st_size + constants.unmapped_bytes(weights, path.parent / constants.FOLDER)
            lack = shortage(needed, torch.device("cpu"))
            if lack:
                raise UnsupportedModel(f"its program {lack}")
            program = _loaded[path] = LoadedProgram(path, weights)
        return program

    @property
    def summary(self) -> str:
        """Says "compiled", or what runs eagerly beside it."""
        if not self.taken:
            return "eager"
        return f"compiled, but eager for {', '.join(self.missing)}" if self.missing else "compiled"

    def warn(self, message: str, about: object = None) -> None:
        """Each once.  about: what is said once, in whatever words; None is the message itself."""
        about = about or message
        if about not in self._warned:
            self._warned.add(about)
            log.warning(message)


class CompiledRunner(Stepping):
    """The forwards of one network."""

    def __init__(self, network: Network, backend: Compiled) -> None:
        """network: whose forwards these are."""
        super().__init__(network)
        self.backend = backend
        self._forwards: dict[tuple[object, ...], tuple[LoadedProgram | None, Run]] = {}
        self._chains: dict[tuple[object, ...], LoadedProgram | None] = {}
        self._programs: dict[tuple[Passage, Form], LoadedProgram | None] = {}
        self._facts: dict[str, Any] | None = None
        self._rows: dict[int, Tensor] = {}

    def forward(self, passage: Passage, inputs: Inputs, cache: CacheLayers) -> Answer:
        """Run a forward: by its program if there is one and the cache lies in memory as it must."""
        texts, rows = inputs.positions.shape
        hidden, keyed = inputs.hidden is not None, inputs.key_positions is not None
        form = (passage, hidden, keyed, texts > 1, rows == 1)
        try:
            program, run = self._forwards[form]
        except KeyError:
            program, run = self._forwards[form] = self._choose(passage, Form(hidden, keyed, texts > 1), rows)
        buffers = None if program is None else self._buffers(cache)
        if program is None or buffers is None:
            return self.network.eager(passage, inputs, cache)
        return run(program, passage, inputs, buffers)

    def advance(self, passage: Passage, inputs: Inputs, cache: CacheLayers, steps: int = 1) -> Advance:
        """Run a chain, in one call where there is a program for it."""
        texts, rows = inputs.positions.shape
        program = self._chain(passage, texts, rows, steps)
        if program is None:
            return super().advance(passage, inputs, cache, steps)
        buffers = self._buffers(cache)
        if buffers is None:
            return watched(self.network.eager, self.network.dtype, passage, inputs, cache, steps)
        logits, tokens, close, *behind = program.run([*_rows(inputs), *buffers])
        last, positions, slots, mask, *hidden = behind
        return Advance(logits, tokens, Inputs(last, None, positions, slots, mask, None), tuple(hidden), close)

    def at_once(self, passage: Passage, texts: int, rows: int, steps: int) -> bool:
        """Whether there is a program for it."""
        return self._chain(passage, texts, rows, steps) is not None

    def _chain(self, passage: Passage, texts: int, rows: int, steps: int) -> LoadedProgram | None:
        """The program of several tokens in turn, which only a quick network has, and for a few numbers."""
        asked = (passage, texts > 1, rows, steps)
        try:
            return self._chains[asked]
        except KeyError:
            worth = self._quick and (rows, steps) in self.backend.chains
            form = Form(many=texts > 1, steps=steps, rows=rows)
            found = self._chains[asked] = self._program(passage, form) if worth else None
            return found

    @cached_property
    def _quick(self) -> bool:
        return self.network.weight_bytes <= QUICK_BYTES

    def _choose(self, passage: Passage, form: Form, rows: int) -> tuple[LoadedProgram | None, Run]:
        """What runs forwards of a form: the program of one row, else that of any number, else none."""
        passage = passage._replace(last_logits_only=False)  # an argument: a prompt and a round have one program
        whole = passage.stop - passage.start == self.network.layers
        if rows == 1 and whole and not form.hidden and not form.keyed:
            program = self._program(passage, form._replace(steps=1))
            if program is not None:
                return program, _one_row
        program = self._program(passage, form)
        name = _name(self.network, passage, form)
        if program is None and name not in self.backend.missing:
            self.backend.missing.append(name)
        return program, self._run

    def _run(self, program: LoadedProgram, passage: Passage, inputs: Inputs, buffers: tuple[Tensor, ...]) -> Answer:
        arguments, rows = _rows(inputs), inputs.positions.shape[1]
        if rows < NARROWEST:
            arguments = [torch.cat((part, part), 1) for part in arguments]
        if inputs.key_positions is not None:
            arguments.append(inputs.key_positions.contiguous())
        whole = passage.stop == self.network.layers
        if whole:
            arguments.append(self._rows_to_read(rows, passage.last_logits_only))
        answers = program.run([*arguments, *buffers])
        if not whole:
            return Answer(None, tuple(state[:, :rows] for state in answers))
        logits, tokens, close, *hidden = answers
        if rows < NARROWEST or passage.last_logits_only:
            logits, tokens, close = logits[:, :1], tokens[:, :1], close[:, :1]
        return Answer(logits, tuple([state[:, :rows] for state in hidden]), Best(tokens, close))

    def _buffers(self, cache: CacheLayers) -> tuple[Tensor, ...] | None:
        buffers = cache.buffers if isinstance(cache, Layers) else buffers_of(cache)
        if buffers is None:
            self.backend.warn("a key/value cache that does not lie in memory as the core's own does is run eagerly")
        return buffers

    def _rows_to_read(self, rows: int, last_only: bool) -> Tensor:
        """int64[K], K at least 2: the last row alone, or all."""
        key = -rows if last_only else rows
        if key not in self._rows:
            wanted = [rows - 1] * NARROWEST if last_only else [*range(max(rows, NARROWEST))]
            self._rows[key] = torch.tensor(wanted, device=self.network.device)
        return self._rows[key]

    def _program(self, passage: Passage, form: Form) -> LoadedProgram | None:
        """Take, or compile, what serves a forward and every other of its form; None if it must run eagerly."""
        if (passage, form) not in self._programs:
            with self.network.clock.paused():
                self._programs[passage, form] = self._found(passage, form)
        return self._programs[passage, form]

    def _found(self, passage: Passage, form: Form) -> LoadedProgram | None:
        name = _name(self.network, passage, form)
        folder = self.backend.folder
        if not self.backend.compiles and not self._worth_a_key:
            return None
        key = self._key(passage, form)
        try:
            found = folder.keep(key, self._build(passage, form, name)) if self.backend.compiles else folder.find(key)
            loaded = None if found is None else self.backend.load(found.path, found.weights)
        except (UnsupportedModel, ConfigError, RuntimeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.backend.warn(f"{name} runs eagerly: {reason}", (self.network.loaded.name, reason))
            found = loaded = None
        if found is not None:
            self.backend.taken.append(found)
        return loaded

    @cached_property
    def _worth_a_key(self) -> bool:
        """Whether a program for a model like this one is there: only then are its weights read, which takes a while."""
        if not self.backend.folder:
            return False
        facts = {"model": identity.of_architecture(self.network), "machine": identity.of_machine()}
        return self.backend.folder.has_like(facts)

    def _key(self, passage: Passage, form: Form) -> Mapping[str, Any]:
        from .compiler import OPTIONS

        if self._facts is None:
            self._facts = {
                "model": identity.of_model(self.network, self.backend.folder.digests),
                "machine": identity.of_machine(),
            }
        asked = {
            key: sorted(value) if isinstance(value, frozenset) else value for key, value in passage._asdict().items()
        }
        asked["hidden_layers"] = list(passage.hidden_layers)
        return {**self._facts, "passage": asked, "form": form._asdict(), "options": OPTIONS}

    def _build(self, passage: Passage, form: Form, name: str) -> Callable[[Path], Mapping[str, Any]]:
        def build(path: Path) -> Mapping[str, Any]:
            with waiting(f"compiling {name}, once"):
                step = Step(self.network, passage, form)
                facts = self.backend.compile(step, path)
                return {"name": name, **facts, "difference": check(step, self.backend.load(path, constants.of(facts)))}

        return build


class LoadedProgram:
    """A program in this process."""

    def __init__(self, path: Path, weights: Sequence[Constant] = ()) -> None:
        """Load it, and map its weights. Raises RuntimeError if it does not fit this torch, or a file is not there."""
        _ask_for_tiles()
        runner: Any = torch._C._aoti.AOTIModelContainerRunnerCpu
        self._mapped = constants.Mapped(weights, path.parent / constants.FOLDER)
        self._runner = runner(str(path), 1)
        if weights:
            self._runner.update_constant_buffer(
                self._mapped.tensors, use_inactive=False, validate_full_updates=True, user_managed=True
            )

    def run(self, arguments: list[Tensor]) -> list[Tensor]:
        """Call it: every argument contiguous, in the order of `Step.forward`. Caches are written in place."""
        answers: list[Tensor] = self._runner.run(arguments)
        return answers


def _ask_for_tiles() -> None:
    """A process must ask the system before it uses a processor's tiles, or it is killed; torch only does so by chance.

    (The first product of oneDNN asks, and a process that runs programs alone may never come to one.)
    """
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


_loaded: WeakValueDictionary[Path, LoadedProgram] = WeakValueDictionary()


@torch.inference_mode()
def check(step: Step, program: LoadedProgram) -> float:
    """The largest difference of a program's answers from the eager forward's, as a share of the largest answer.

    At other sizes than those that it was traced with, which prove little. Raises UnsupportedModel if the difference is
    more than rounding.
    """
    largest = 0.0
    for rows, extent in ((2, 64), (7, 128)):
        arguments = step.example(Sizes(rows, extent, extent + 64, rows))
        parts, buffers = arguments[:-1], arguments[-1]
        before = [buffer.clone() for buffer in buffers]
        said = program.run([*(part for part in parts if part is not None), *buffers])
        chosen = said[1] if step.form.steps else None  # which rounding may change, and all that follows with it
        wanted, given = [*step.eager((*parts, before), chosen), *before], [*said, *buffers]
        for mine, theirs in zip(given, wanted, strict=True):
            if not mine.is_floating_point():
                continue
            difference = relative_difference(mine, theirs)
            if not difference <= TOLERANCE.get(step.network.dtype, 1e-1):  # also if it is not a number
                raise UnsupportedModel(f"compiled, its answers change by {difference:.2g} of the largest")
            largest = max(largest, difference)
    return largest


def _one_row(program: LoadedProgram, _: Passage, inputs: Inputs, buffers: tuple[Tensor, ...]) -> Answer:
    """What its own program says about one row, the row behind it included."""
    logits, tokens, close, positions, slots, mask, *hidden = program.run([*_rows(inputs), *buffers])
    behind = Inputs(tokens, None, positions, slots, mask, None)
    return Answer(logits, tuple(hidden), Best(tokens, close), behind)


def _rows(inputs: Inputs) -> list[Tensor]:
    """The arguments that every program begins with."""
    entry = inputs.tokens if inputs.hidden is None else inputs.hidden
    assert entry is not None
    return [part.contiguous() for part in (entry, inputs.positions, inputs.slots, inputs.mask)]


def _name(network: Network, passage: Passage, form: Form) -> str:
    """What a program is, for people."""
    words = [network.loaded.name]
    if (passage.start, passage.stop) != (0, network.layers):
        words.append(f"layers {passage.start} to {passage.stop - 1}")
    skipped = len(passage.skip_attention) + len(passage.skip_mlp)
    if skipped:
        words.append(f"{skipped} sub-layers skipped")
    if passage.hidden_layers:
        words.append(f"hidden states {', '.join(map(str, passage.hidden_layers))}")
    if form.keyed:
        words.append("trees")
    if form.steps:
        words.append("one row" if form.steps == 1 else f"{form.steps} tokens in turn")
    if form.rows > 1:
        words.append(f"behind {form.rows} rows")
    words.append("several texts" if form.many else "one text")
    return ", ".join(words)
