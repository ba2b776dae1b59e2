"""Devices as a benchmark needs them: synchronised before a clock is read, and with their memory watched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(slots=True)
class Memory:
    """Bytes before and at the peak of a piece of work."""

    before: int = 0
    peak: int = 0

    @property
    def grown(self) -> int:
        """How far the peak stood above where the work began."""
        return max(0, self.peak - self.before)


@contextmanager
def watched(device: torch.device) -> Iterator[Memory]:
    """Memory of a piece of work: the allocator's on a GPU; on a CPU the process's, whose peak Linux can reset.

    Where the peak cannot be reset, it is the largest since the process began, so that growth shows only once.
    """
    memory = Memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        memory.before = torch.cuda.memory_allocated(device)
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device)
        return
    _reset_peak()
    memory.before = resident()
    yield memory
    memory.peak = _peak()


def used(device: torch.device) -> int:
    """Bytes in use now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()


def resident() -> int:
    """Bytes of the process in main memory; 0 where the system does not say."""
    return _status("VmRSS")


def _peak() -> int:
    found = _status("VmHWM")
    if found or sys.platform == "win32":
        return found
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reset_peak() -> None:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return  # not Linux, or not allowed


def _status(key: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    values = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(next(values, "0")) * 1024
