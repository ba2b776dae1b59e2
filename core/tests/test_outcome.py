"""What is read at the end of a round: the same numbers, one tensor at a time or all in one."""

from __future__ import annotations

import torch

from fastllm_core.outcome import at_once, on_host


def test_all_at_once_is_one_after_another() -> None:
    parts = [
        torch.tensor([1, 2, 3]),
        torch.tensor([[4, -1], [5, 6], [7, 8]]),
        torch.zeros(3, 0, dtype=torch.bool),
        torch.tensor([[True], [False], [True]]),
    ]
    assert (
        at_once(parts) == on_host(*parts) == [[1, 2, 3], [[4, -1], [5, 6], [7, 8]], [[]] * 3, [[True], [False], [True]]]
    )
