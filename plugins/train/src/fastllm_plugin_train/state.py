"""What a run goes on from: weights, optimiser and curves in one file, which is replaced as a whole.

A safetensors file with JSON in its metadata: nothing in it runs code when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastllm_core import ConfigError

FILE: Final = "state.safetensors"
VERSION: Final = 1


@dataclass(slots=True)
class State:
    """Where a run stands."""

    step: int = 0
    """Steps that are done."""
    best: float = float("inf")
    """The lowest loss on what is held out."""
    since_best: int = 0
    """Evaluations since then."""
    stopped: str | None = None
    """Why training ended before its last step."""
    losses: list[list[float]] = field(default_factory=list)
    """[step, mean loss of a place since the last entry]."""
    recent: list[float] = field(default_factory=lambda: [0.0, 0])
    """Sum and number of the losses since the last entry."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    """Spent so far, over all runs."""

    def to_json(self) -> dict[str, Any]:
        """Everything but what JSON cannot say."""
        return {name: getattr(self, name) for name in self.__slots__}


def save(folder: Path, identity: Mapping[str, Any], state: State, module: nn.Module, optimizer: Any) -> None:
    """Write everything, whole or not at all."""
    tensors: dict[str, Tensor] = {
        f"weight.{name}": part.detach().cpu() for name, part in module.named_parameters() if part.requires_grad
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"moment.{index}.{name}": value.detach().cpu() for name, value in moments.items()}
    told = {"version": VERSION, "identity": dict(identity), "state": state.to_json()}
    part = folder / f".{FILE}.part"
    save_file({name: value.contiguous() for name, value in tensors.items()}, part, {"run": json.dumps(told)})
    os.replace(part, folder / FILE)


def load(folder: Path, identity: Mapping[str, Any], module: nn.Module, optimizer: Any) -> State:
    """Go on from a folder, or begin if there is nothing. Raises ConfigError if another run left its state there."""
    path = folder / FILE
    if not path.exists():
        return State()
    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {})["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = State(**told["state"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--output {folder}: {FILE} cannot be read; --fresh begins anew") from error
    differing = sorted(name for name in identity if told["identity"].get(name) != identity[name])
    if told.get("version") != VERSION or differing:
        raise ConfigError(
            f"--output {folder}: holds a run with another {', '.join(differing) or 'version'}; give the same command "
            "to go on, another folder, or --fresh to throw it away"
        )
    _restore(tensors, module, optimizer)
    return state


@torch.no_grad()
def _restore(tensors: Mapping[str, Tensor], module: nn.Module, optimizer: Any) -> None:
    for name, part in module.named_parameters():
        if part.requires_grad:
            part.copy_(tensors[f"weight.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "moment":
            index, _, moment = rest.partition(".")
            moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
