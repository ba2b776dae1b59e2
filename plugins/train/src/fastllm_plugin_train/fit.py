"""The training loop: lessons, a loss, an optimiser's step; evaluations, and a state to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastllm_core import FastllmError, Network, TargetIdentity, Trainer

from . import state as states
from .evaluation import judged
from .recipe import Recipe
from .rows import Rows
from .state import State
from .teacher import Teacher

BETAS: Final = (0.9, 0.95)
TARGET: Final = "target"
"""The folder, in that of the head, of a target that was trained with it."""


class OutOfMemory(FastllmError):
    """A step did not fit; what was learned before it is saved."""


class Watcher(Protocol):
    """Hears how training goes."""

    def step(self, state: State, loss: float) -> None:
        """A step is done."""

    def evaluation(self, state: State) -> None:
        """The last of `state.evaluations` is new."""


@dataclass(frozen=True, slots=True)
class Run:
    """What does not change while a head is trained."""

    trainer: Trainer
    teacher: Teacher
    rows: Rows
    held: Rows
    recipe: Recipe
    output: Path
    identity: Mapping[str, Any]
    """What a saved state must agree with."""
    micro: int
    """Rows that are read at once: memory is set by it, and a step's sum is rounded by it."""
    draft_length: int
    """Tokens of the drafts that evaluations walk with."""
    save_every: int
    accelerator: Accelerator


def fit(run: Run, watcher: Watcher, wants_to_stop: Callable[[], bool] = lambda: False) -> State:
    """Train to the last step, or until held-out rows are no longer learned, or until somebody wants to stop.

    The state is saved every few steps and at the end, the best head as soon as there is one: whatever ends the process,
    the same call goes on, and ends with the same weights, bit for bit. Raises OutOfMemory.
    """
    trainer, recipe = run.trainer, run.recipe
    bare = trainer.module
    groups = _groups(bare, trainer.rates)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, weight_decay=recipe.weight_decay)
    state = states.load(run.output, run.identity, bare, optimizer)
    trainer.module, prepared = run.accelerator.prepare(bare, optimizer)
    try:
        if not state.evaluations:
            _evaluate(run, state, bare, watcher)
        while state.step < recipe.steps and not state.stopped and not wants_to_stop():
            began = time.perf_counter()
            loss = _step(run, state, prepared)
            state.step += 1
            state.recent = [state.recent[0] + loss, state.recent[1] + 1]
            state.seconds += time.perf_counter() - began
            watcher.step(state, loss)
            if state.step % recipe.evaluate_every == 0 or state.step == recipe.steps:
                state.losses.append([state.step, state.recent[0] / state.recent[1]])
                state.recent = [0.0, 0]
                _evaluate(run, state, bare, watcher)
            if state.step % run.save_every == 0 or state.step % recipe.evaluate_every == 0:
                _save(run, state, bare, optimizer)
        _save(run, state, bare, optimizer)
    finally:
        trainer.module = bare
    return state


def _groups(module: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """What is trained, by the factor of its learning rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, part in module.named_parameters():
        if part.requires_grad:
            factor = next((factor for start, factor in rates.items() if name.startswith(start)), 1.0)
            found.setdefault(factor, []).append(part)
    return [{"params": parts, "factor": factor} for factor, parts in found.items()]


def _step(run: Run, state: State, optimizer: Any) -> float:
    """One step; returns the mean loss of a counted place."""
    recipe, accelerator = run.recipe, run.accelerator
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * recipe.rate(state.step)
    optimizer.zero_grad(set_to_none=True)
    rows = run.rows.batch(state.step, recipe.batch, recipe.seed)
    mine = torch.arange(accelerator.process_index, len(rows), accelerator.num_processes)
    counted = max(1, int(_counted(rows.take(mine)).sum()))
    total = torch.zeros((), device=run.teacher.network.device)
    with _memory(run, state):
        for part in torch.split(mine, run.micro):
            lesson = replace(run.teacher.lesson(rows.take(part)), progress=state.step / recipe.steps)
            loss, _ = run.trainer.loss(lesson)
            accelerator.backward(loss / counted)
            total += loss.detach()
        if recipe.clip:
            accelerator.clip_grad_norm_(
                [part for group in optimizer.param_groups for part in group["params"]], recipe.clip
            )
        optimizer.step()
    return float(total) / counted


def _counted(rows: Rows) -> Tensor:
    """bool[B, S - 1]: places whose next token is an answer, in the same document; see `Lesson.counted`."""
    return rows.answers[:, 1:] & (rows.documents[:, 1:] == rows.documents[:, :-1])


@torch.no_grad()
def _evaluate(run: Run, state: State, bare: nn.Module, watcher: Watcher) -> None:
    """Loss and acceptance on what is held out; the best head is written at once."""
    told = judged(run.trainer, run.teacher, run.held, run.draft_length, run.micro)
    better = told["loss"] < state.best
    state.best = min(state.best, told["loss"])
    state.since_best = 0 if better else state.since_best + 1
    state.evaluations.append({"step": state.step, **told})
    if run.recipe.patience and state.since_best >= run.recipe.patience:
        state.stopped = f"no better for {state.since_best} evaluations"
    if better and run.accelerator.is_main_process:
        prepared, run.trainer.module = run.trainer.module, bare
        _write(run)
        run.trainer.module = prepared
    watcher.evaluation(state)


def _write(run: Run) -> None:
    """The head, behind the target that it was trained with, if that was trained as well."""
    head, model = run.trainer.head(), run.trainer.tuned()
    if model is not None:
        folder = run.output / TARGET
        model.save_pretrained(folder)
        frozen = run.teacher.network
        if frozen.loaded.tokenizer is not None:
            frozen.loaded.tokenizer.save_pretrained(folder)
        known = (frozen.adapter,) if frozen.adapter_is_foreign else ()
        tuned = Network(replace(frozen.loaded, model=model), adapters=known)
        identity = TargetIdentity.of(tuned, body=True)
        head = replace(head, target=replace(identity, model=f"{run.output.name}/{TARGET}"))
    head.save(run.output)


def _save(run: Run, state: State, bare: nn.Module, optimizer: Any) -> None:
    if run.accelerator.is_main_process:
        states.save(run.output, run.identity, state, bare, optimizer)


@contextmanager
def _memory(run: Run, state: State) -> Iterator[None]:
    """Say what to do where memory ends. The state on disk is that of the last save, which the next run goes on from."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"out of memory in step {state.step + 1} with {run.micro} rows at once; give the same command with "
            f"--micro {max(1, run.micro // 2)}, and it goes on from the last saved step"
        ) from error
