"""Whether samples follow a law that is known exactly."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

Text = tuple[int, ...]


@torch.inference_mode()
def law_of(
    model: nn.Module, prompt: Sequence[int], count: int, vocab_size: int, temperature: float
) -> dict[Text, float]:
    """The probability of every text of `count` tokens after a prompt, from the model's own forward alone."""
    texts = list(itertools.product(range(vocab_size), repeat=count))
    logits = model(torch.tensor([[*prompt, *text] for text in texts])).logits
    steps = torch.log_softmax(logits[:, len(prompt) - 1 : -1].double() / temperature, -1)
    chosen = steps.gather(2, torch.tensor(texts)[:, :, None]).sum((1, 2)).exp()
    return dict(zip(texts, chosen.tolist(), strict=True))


def misfit(samples: Sequence[Text], law: Mapping[Text, float]) -> float:
    """How far samples are from a law, in standard deviations of a chi-square statistic.

    Wilson and Hilferty's approximation; texts expected fewer than five times are counted together.
    """
    total, counts = len(samples), Counter(samples)
    cells = [(counts.pop(text, 0), p * total) for text, p in law.items() if p * total >= 5]
    rest = total - sum(expected for _, expected in cells)
    if rest >= 5:
        cells.append((sum(counts.values()), rest))
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    freedom = max(len(cells) - 1, 1)
    return float(((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom)))


def total_variation(samples: Sequence[Text], law: Mapping[Text, float]) -> float:
    """Half the sum of what the frequencies are off by, sampling noise included."""
    counts, total = Counter(samples), len(samples)
    return sum(abs(counts[text] / total - p) for text, p in law.items()) / 2
