"""The weights of compiled programs: files that are mapped, not read, and shared by all programs that hold the same.

A program's library holds code alone. Its weights, packed for the kernels that read them, lie beside it, each in a file
that is named by its hash. So the programs of a network (one text, several, one row, its layer views) have one copy on
disk and in memory, which the system reads when it is first needed and may drop, and loading takes no time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

FOLDER: Final = "constants"
"""Beside the programs."""
FACT: Final = "constants"
"""Where a program's record lists them."""
ROWS: Final = 7
"""Rows that oneDNN packs a matrix for, as the step is traced with; other numbers only cost it time."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One tensor of a program."""

    name: str
    """What the program calls it."""
    sha256: str
    """Of its bytes, which are the file of this name."""
    bytes: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Where it begins in the file, in elements."""
    packed: bool = False
    """oneDNN packs it, in a way of its own that no file holds: it is packed anew, and that copy is the process's."""


class Mapped:
    """The constants of one program, in this process."""

    def __init__(self, constants: Iterable[Constant], folder: Path) -> None:
        """folder: where their files are. Raises RuntimeError if one cannot be mapped."""
        self.tensors: dict[str, Tensor] = {}
        """By the name that the program knows."""
        self._files: list[Tensor] = []
        for constant in constants:
            self.tensors[constant.name] = self._tensor(constant, folder)

    def _tensor(self, constant: Constant, folder: Path) -> Tensor:
        dtype = getattr(torch, constant.dtype)
        if not constant.bytes:
            return torch.empty_strided(constant.shape, constant.stride, dtype=dtype)
        file = _mapping(folder / constant.sha256, constant.bytes)
        part = torch.empty(0, dtype=dtype)
        part.set_(file.untyped_storage(), constant.offset, constant.shape, constant.stride)
        if constant.packed:
            return torch.ops.mkldnn._reorder_linear_weight(part, ROWS)  # type: ignore[no-any-return]
        self._files.append(file)  # the mapping is shared as long as somebody holds it
        return part


def write(name: str, tensor: Tensor, folder: Path) -> Constant:
    """Put a tensor of a program into a folder, if no file of the same bytes is there."""
    packed, tensor = tensor.is_mkldnn, tensor.detach()
    if packed:
        tensor = tensor.to_dense()
    storage = tensor.untyped_storage()
    content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
    digest = hashlib.sha256(content).hexdigest()
    if storage.nbytes() and not (folder / digest).exists():
        (folder / digest).write_bytes(content)
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
    return Constant(name, digest, storage.nbytes(), dtype, shape, stride, offset, packed)


def told(constants: Iterable[Constant]) -> list[dict[str, Any]]:
    """As JSON values, for a record."""
    return [asdict(constant) for constant in constants]


def of(facts: Mapping[str, Any]) -> tuple[Constant, ...]:
    """Those that a program's record lists. Raises TypeError if it is not one."""
    given = (
        {**entry, "shape": tuple(entry["shape"]), "stride": tuple(entry["stride"])} for entry in facts.get(FACT, ())
    )
    return tuple(Constant(**entry) for entry in given)


def files(constants: Iterable[Constant]) -> dict[str, int]:
    """The files that hold some constants, and their bytes."""
    return {constant.sha256: constant.bytes for constant in constants if constant.bytes}


def unmapped_bytes(constants: Iterable[Constant], folder: Path) -> int:
    """How much of them this process has not mapped yet."""
    return sum(size for name, size in files(constants).items() if folder / name not in _mapped)


_mapped: WeakValueDictionary[Path, Tensor] = WeakValueDictionary()


def _mapping(path: Path, size: int) -> Tensor:
    """uint8[size]: a file's bytes, once in this process for all that read them."""
    mapping = _mapped.get(path)
    if mapping is None:
        mapping = _mapped[path] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return mapping
