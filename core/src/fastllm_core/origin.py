"""Which files a model's weights came from, as long as nobody has changed the weights since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache
from torch import nn

if TYPE_CHECKING:
    from .models import ModelSource


@dataclass(frozen=True, slots=True)
class Origin:
    """Safetensors files, and marks by which a change of the tensors that were read from them is noticed."""

    files: tuple[Path, ...]
    marks: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, source: ModelSource, model: nn.Module) -> Origin | None:
        """Where a model was just loaded from; None if its files, or changes of its tensors, cannot be told."""
        tensors = (*model.parameters(), *model.buffers())
        if any(tensor.is_inference() for tensor in tensors):  # they do not count what is written to them
            return None
        folder = _folder(source, model)
        files = tuple(sorted(folder.glob("*.safetensors"))) if folder is not None else ()
        return cls(files, tuple(_marks(model))) if files else None

    def files_of(self, model: nn.Module) -> tuple[Path, ...]:
        """The files that hold a model's weights as they are now: none if a weight was replaced or written to."""
        return self.files if tuple(_marks(model)) == self.marks else ()


def _folder(source: ModelSource, model: nn.Module) -> Path | None:
    if source.local:
        return Path(source.location)
    revision = getattr(model.config, "_commit_hash", None)
    found = try_to_load_from_cache(source.location, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _marks(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Where each tensor lies and how often it was written to."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            yield tensor.data_ptr(), tensor._version
