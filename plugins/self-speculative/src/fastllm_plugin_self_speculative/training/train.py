"""The training loop, and the folder that it leaves: a stock model, since an early exit has no weights of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fastllm_core import ConfigError, LoadedModel

from ..tuning.result import versions
from .data import rows_of
from .exits import Exits
from .recipe import Recipe

RECORD: Final = "early-exit.json"
HELD_OUT: Final = 8
"""Rows that are not trained on, for the accuracy of the exits."""
CLIP: Final = 1.0
"""Largest norm of the gradient."""


def train(
    target: LoadedModel,
    data: Sequence[Path],
    recipe: Recipe,
    output: Path,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, Any]:
    """Train a copy of a model and write it to a folder. Returns the record that is written beside it.

    tell: hears of each step's loss. Ctrl-C ends the training early and keeps what was learned.
    Raises ConfigError or UnsupportedModel.
    """
    if target.tokenizer is None:
        raise ConfigError(f"model '{target.name}': has no tokenizer, and data is text")
    model = _model_of(target, recipe)
    exits = Exits(model)
    if recipe.exits and max(recipe.exits) >= len(exits.layers):
        raise ConfigError(f"--exit {max(recipe.exits)}: lies not before the last of {len(exits.layers)} layers")
    rows = rows_of(data, target.tokenizer, recipe.length, recipe.steps * recipe.batch + HELD_OUT, recipe.seed)
    held, rows = (rows[:HELD_OUT], rows[HELD_OUT:]) if len(rows) > HELD_OUT else (rows, rows)
    losses: list[float] = []
    before = _accuracy(exits, held.to(target.device))
    try:
        for loss in steps(exits, rows.to(target.device), recipe):
            losses.append(loss)
            tell(len(losses), loss)
    except KeyboardInterrupt:
        if not losses:
            raise
    record = {
        "recipe": asdict(recipe),
        "from": target.name,
        "data": [path.name for path in data],
        "steps": len(losses),
        "tokens": len(losses) * recipe.batch * recipe.length,
        "losses": [round(loss, 4) for loss in losses],
        "agreement_before": before,
        "agreement_after": _accuracy(exits, held.to(target.device)),
        "versions": versions(),
    }
    model.to(target.dtype).save_pretrained(output)
    target.tokenizer.save_pretrained(output)
    (output / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def steps(exits: Exits, rows: Tensor, recipe: Recipe) -> Any:
    """Train step by step, yielding each step's loss. rows: int64[any, S], taken again from the start if too few."""
    optimiser = torch.optim.AdamW(exits.model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95))
    dropping = torch.Generator().manual_seed(recipe.seed)
    exits.model.train()
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        first = step * recipe.batch
        batch = rows[torch.arange(first, first + recipe.batch) % len(rows)]
        with exits.dropping(recipe, step, dropping):
            loss = exits.loss(batch, recipe.exit_weights(len(exits.layers), step))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(exits.model.parameters(), CLIP)
        optimiser.step()
        yield float(loss.detach())
    exits.model.eval()


def _model_of(target: LoadedModel, recipe: Recipe) -> Any:
    """A copy in float32, since small steps vanish in coarser numbers; with new weights if the recipe says so."""
    if not recipe.scratch:
        return copy.deepcopy(target.model).float()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        fresh: Any = type(target.model)(copy.deepcopy(target.model.config))
    fresh.generation_config = copy.deepcopy(target.model.generation_config)
    return fresh.to(target.device, torch.float32)


def _accuracy(exits: Exits, rows: Tensor) -> list[float]:
    exits.model.eval()
    return [round(each, 4) for each in exits.accuracy(rows)]
