"""What every trial of a search is judged by, kept beside its studies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastllm_core import ConfigError, RequestError, read_prompts

from .agreement import Text, written
from .costs import Costs
from .timing import measure

if TYPE_CHECKING:
    from rich.console import Console

    from fastllm_core import Pipeline, TargetIdentity

    from .wishes import Wishes

SETUP: Final = "setup.json"


@dataclass(frozen=True, slots=True)
class Setup:
    """What every trial of a folder is judged by, written once: times would differ after an interruption."""

    asked: Mapping[str, Any]
    texts: Sequence[Text]
    costs: Costs


def default_folder(wishes: Wishes, identity: TargetIdentity) -> Path:
    """A folder for this model and what is asked of it, so that the same command goes on where it stopped."""
    asked = json.dumps([asked_of(wishes, identity), wishes.objective, wishes.most, wishes.seed], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    name = wishes.config.model.rstrip("/").rpartition("/")[2]
    return Path("tune") / f"{name}-{wishes.space}-{digest}"


def asked_of(wishes: Wishes, identity: TargetIdentity) -> dict[str, Any]:
    """What texts and costs follow from."""
    prompts = hashlib.sha256("\n".join(read_prompts(wishes.prompts, wishes.limit)).encode()).hexdigest()[:16]
    costs = None if wishes.costs is None else hashlib.sha256(_bytes_of(wishes.costs)).hexdigest()[:16]
    known = {key: value for key, value in asdict(identity).items() if key != "model"}
    return {
        "model": known,
        "prompts": prompts,
        "new_tokens": wishes.new_tokens,
        "longest": wishes.longest,
        "costs": costs,
        "forward": wishes.config.forward,
        "dtype": wishes.config.dtype,
        "device": wishes.config.device,
    }


def set_up(wishes: Wishes, plain: Pipeline, identity: TargetIdentity, path: Path, console: Console) -> Setup:
    """What an earlier session of the folder wrote, else made now. Raises RequestError or ConfigError."""
    asked = json.loads(json.dumps(asked_of(wishes, identity)))
    if path.is_file():
        found = _read_setup(path)
        different = [key for key in asked if asked[key] != found.asked.get(key)]
        if different:
            raise RequestError(
                f"--output {path.parent}: holds a search for something else (different: {', '.join(different)}); name "
                "another folder, or say --fresh to throw it away"
            )
        return found
    prompts = read_prompts(wishes.prompts, wishes.limit)
    with console.status("writing texts, and timing what rounds are made of"):
        texts = written(plain, prompts, wishes.new_tokens)
        given = None if wishes.costs is None else costs_of(wishes.costs, plain.engine.parts.network.layers)
        costs = given or measure(plain, wishes.longest, prompts[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"asked": asked, "costs": costs.to_json(), "texts": [[text.prompt, text.continuation] for text in texts]}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(told), encoding="utf-8")
    os.replace(part, path)
    return Setup(asked, texts, costs)


def _read_setup(path: Path) -> Setup:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        texts = [Text(tuple(prompt), tuple(continuation)) for prompt, continuation in told["texts"]]
        return Setup(dict(told["asked"]), texts, Costs.read(told["costs"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: is no setup of a search ({error}); say --fresh to start anew") from error


def costs_of(path: Path, layers: int) -> Costs:
    """Costs from a file: their own, or in a result of an earlier search. Raises ConfigError."""
    try:
        value = json.loads(_bytes_of(path))
        costs = Costs.read(value.get("costs", value))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"--costs {path}: holds no costs ({error})") from error
    if costs.layers != layers:
        raise ConfigError(f"--costs {path}: are of a model with {costs.layers} layers, and this one has {layers}")
    return costs


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--costs {path}: cannot be read: {error.strerror}") from error
