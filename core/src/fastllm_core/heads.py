"""Trained heads: small networks that draft for one target, in a folder with `config.json` and `model.safetensors`.

The configuration says which method reads the head, which target it was trained for, and the method's own settings. A
head for another target is refused: its drafts would be worthless, and its sizes may even fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Network

FORMAT: Final = "fastllm-head"
VERSION: Final = 1
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
ROWS: Final = 512
"""Rows of the output matrix that are hashed, evenly spaced: reading all of a large one takes longer than loading."""
SAMPLE: Final = 32
"""Of their numbers, so many are kept as they are."""
RELATIVE: Final = 2.0**-7
ABSOLUTE: Final = 2.0**-24
"""How far one number moves at most, rounded to bfloat16 by way of another format, and where float16 begins."""

HASHED: Final = {
    "head": "other weights (the hash of the output matrix differs)",
    "body": "other weights (the hash of its layers differs): it is the model before tuning, or was tuned otherwise",
}


@dataclass(frozen=True, slots=True)
class TargetIdentity:
    """A model, as a head or a skip set remembers its target. What is None is not known, and fits everything."""

    model: str | None = None
    """Its name, for people: the same model may lie anywhere."""
    model_type: str | None = None
    layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    head: str | None = None
    """A hash of the output matrix in bfloat16: the same for most number formats that the model may be loaded in."""
    sample: tuple[float, ...] | None = None
    """A few numbers of that matrix. Where hashes differ they tell whether it is another model, or numbers were rounded
    twice: a float32 checkpoint that is loaded in float16 has another hash."""
    body: str | None = None
    """A hash of a sample of all other matrices, for a head of a model that was tuned with it: the output matrix may be
    that of the model it came from. None for all other heads, which fit a model's quantised forms as well."""

    @classmethod
    def of(cls, network: Network, *, body: bool = False) -> TargetIdentity:
        """That of a loaded model.  body: with the hash of its other matrices."""
        sizes = network.layers, network.hidden_size, network.vocab_size
        rows = _sampled_rows(network)
        return cls(
            network.loaded.name,
            network.loaded.config.model_type,
            *sizes,
            head=None if rows is None else _hash([rows]),
            sample=None if rows is None else _sample(rows),
            body=_body(network) if body else None,
        )

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> TargetIdentity:
        """From JSON; what it does not know stays None."""
        known: dict[str, Any] = {each.name: value.get(each.name) for each in fields(cls)}
        if known["sample"] is not None:
            known["sample"] = tuple(map(float, known["sample"]))
        return cls(**known)

    def mismatch(self, other: TargetIdentity) -> str | None:
        """What tells another model from this one, in words; None if nothing does. A name proves nothing."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.name in ("model", "sample") or mine is None or theirs is None or mine == theirs:
                continue
            if each.name == "head" and _rounded_alike(self.sample, other.sample):
                continue
            what = HASHED.get(each.name) or f"{theirs}, not {mine}"
            return f"{each.name.replace('_', ' ')}: {what}"
        return None


@dataclass(frozen=True)
class Head:
    """What a head's folder holds."""

    method: str
    """The plugin that reads it."""
    target: TargetIdentity
    settings: Mapping[str, Any]
    """The method's own: where its features come from, its sizes."""
    weights: Mapping[str, Tensor]
    source: str = "head"
    """Where it came from, for messages."""
    growth: Mapping[str, Any] = field(default_factory=dict)
    """Which axes of its weights are the target's hidden ones, for whoever grows the target (docs/authors/heads.md)."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was made; nobody depends on it."""

    def check(self, method: str, target: TargetIdentity) -> None:
        """Raise ModelError unless this is a head of that method, for that target."""
        if self.method != method:
            raise ModelError(f"{self.source} is a head for '{self.method}', and '{method}' cannot read it")
        reason = self.target.mismatch(target)
        if reason:
            raise ModelError(
                f"{self.source} was trained for {self.target.model or 'another model'}, and '{target.model}' is "
                f"another ({reason}): take a head for this model, or train one (fastllm train {method})"
            )

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, each whole or not at all. Makes the folder."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        config = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "target": asdict(self.target),
            "settings": dict(self.settings),
            "growth": dict(self.growth),
            "training": dict(self.training),
        }
        _write(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        _write(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def load_head(name: str, revision: str | None = None) -> Head:
    """Read a head.

    name: a registered name, a local folder, or `owner/name` on the hub.  revision: branch, tag or commit on the hub.
    Raises ModelError if it is not there, or is no head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder(name, revision)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ModelError(
                f"'{name}' is no fastllm head: its {CONFIG} does not say format = '{FORMAT}'. A head in its authors' "
                "format is read by fastllm convert"
            )
        if config.get("version") != VERSION:
            raise ModelError(f"head '{name}' is of version {config.get('version')}, and this fastllm reads {VERSION}")
        weights = load_file(folder / WEIGHTS)
        target = TargetIdentity.read(config["target"])
        parts = (str(config["method"]), target, dict(config["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"head '{name}' cannot be read: {reason}") from error
    return Head(*parts, weights, f"head '{name}'", config.get("growth", {}), config.get("training", {}))


def _folder(name: str, revision: str | None) -> Path:
    from .models import registered_model, resolve_model

    folder = Path(name).expanduser()
    if folder.is_dir() and registered_model(name) is None:
        return folder  # what it lacks is said where it is read
    source = resolve_model(name)
    if source.local:
        return Path(source.location)
    from huggingface_hub import hf_hub_download

    try:
        files = [Path(hf_hub_download(source.location, file, revision=revision)) for file in (CONFIG, WEIGHTS)]
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"head '{name}' cannot be read from the hub: {reason}") from error
    return files[0].parent


def _sampled_rows(network: Network) -> Tensor | None:
    """float[ROWS, H] of the output matrix, on the CPU; None if it cannot be read (quantised, not in memory)."""
    found: Any = network.model.get_output_embeddings()  # type: ignore[operator]
    weight: Tensor | None = getattr(found, "weight", None)
    if weight is None or weight.is_meta or not weight.dtype.is_floating_point:
        return None
    step = max(1, weight.shape[0] // ROWS)
    return weight.detach()[::step][:ROWS].cpu()


def _sample(rows: Tensor) -> tuple[float, ...]:
    """Numbers from all over some rows, as they are."""
    flat = rows.flatten()
    return tuple(flat[[index * (len(flat) - 1) // (SAMPLE - 1) for index in range(SAMPLE)]].float().tolist())


def _rounded_alike(mine: tuple[float, ...] | None, theirs: tuple[float, ...] | None) -> bool:
    """Whether two samples are the same numbers in two formats; False if one is not known."""
    if mine is None or theirs is None or len(mine) != len(theirs):
        return False
    return all(abs(a - b) <= RELATIVE * max(abs(a), abs(b)) + ABSOLUTE for a, b in zip(mine, theirs, strict=True))


def _body(network: Network) -> str | None:
    """Of the first and the middle row of every matrix but the output; None if one cannot be read."""
    found: Any = network.model.get_output_embeddings()  # type: ignore[operator]
    output = getattr(found, "weight", None)
    matrices = [part for part in network.model.parameters() if part.dim() > 1 and part is not output]
    if any(part.is_meta or not part.dtype.is_floating_point for part in matrices):
        return None
    return _hash([row for part in matrices for row in part.detach().flatten(1)[:: max(1, len(part) // 2)][:2]])


def _hash(rows: Sequence[Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for part in rows:
        digest.update(part.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(path: Path, data: bytes) -> None:
    """Replace a file by a whole one."""
    import os

    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)
