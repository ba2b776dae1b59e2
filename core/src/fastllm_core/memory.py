"""Whether something large will fit, asked before it is read: a process without memory is killed without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

MEMINFO: Final = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody can say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = {name: value for name, _, value in (line.partition(":") for line in lines)}.get("MemAvailable")
    return None if free is None else int(free.split()[0]) * 1024


def shortage(needed: int, device: torch.device) -> str | None:
    """Says "needs 16.1 GB, and 7.9 GB are free on cpu" if it does not fit, else None."""
    free = available_bytes(device)
    if free is None or needed <= free:
        return None
    return f"needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}"
