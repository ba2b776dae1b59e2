"""The attention for few rows gives what transformers' gives, and leaves to it what is special."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from fastllm_core import attention
from fastllm_core.attention import MOST_ROWS, attend


def module(groups: int) -> nn.Module:
    layer = nn.Module()
    layer.num_key_value_groups = groups
    return layer


@pytest.mark.parametrize("rows", [1, 2, 6, MOST_ROWS + 1])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_equals_repeating_keys_and_values(rows: int, groups: int) -> None:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(3, 2 * groups, rows, 8, generator=random)
    key, value = torch.randn(2, 3, 2, 40, 8, generator=random)
    seen = torch.rand(3, 1, rows, 40, generator=random) < 0.5
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    given, _ = attend(module(groups), query, key, value, mask, scaling=0.3)
    wanted, _ = sdpa_attention_forward(module(groups), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("special", [{"position_bias": torch.zeros(1, 4, 3, 5)}, {"s_aux": torch.zeros(4)}])
def test_whatever_is_special_goes_to_transformers(
    special: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def theirs(*arguments: object, **more: object) -> tuple[None, None]:
        seen.append(set(more))
        return None, None

    monkeypatch.setattr(attention, "sdpa_attention_forward", theirs)
    query, key, mask = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8), torch.zeros(1, 1, 3, 5)
    attend(module(2), query, key, key, mask, position_ids=torch.zeros(1, 3), **special)
    assert special.keys() <= seen[0]
    attend(module(2), query, key, key, mask, position_ids=torch.zeros(1, 3))
    assert len(seen) == 1
