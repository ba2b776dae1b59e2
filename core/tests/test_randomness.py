"""Run: PYTHONPATH=core/src pytest core/tests/test_randomness.py"""

from __future__ import annotations

import numpy as np

from fastllm_core.randomness import Purpose, fresh_seed, uniforms


def key(n: int, i: int = 0) -> list[list[tuple[int, int]]]:
    return [[(n, i)]]


def test_same_key_same_number_in_any_batch() -> None:
    together = uniforms([7, 8], Purpose.DRAFT, [[(5, 0), (5, 1)], [(9, 0), (9, 1)]])
    assert together.shape == (2, 2)
    assert together.dtype == np.float64
    assert uniforms([8], Purpose.DRAFT, [[(9, 1), (9, 0)]]).tolist() == [together[1, ::-1].tolist()]


def test_values_are_pinned() -> None:
    """Texts are a function of the seed across versions: these numbers must not change."""
    values = uniforms([0, -1], Purpose.EXTRA, [[(1, 0)], [(2**40, 3)]]).ravel().tolist()
    assert values == PINNED


def test_every_part_of_the_key_counts() -> None:
    values = {
        uniforms([seed], purpose, key(n, i)).item()
        for seed in (0, 1, 2**63, 2**64 - 1)
        for purpose in Purpose
        for n in range(8)
        for i in range(8)
    }
    assert len(values) == 4 * 4 * 8 * 8


def test_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert uniforms([-1], Purpose.TARGET, key(3)) == uniforms([2**64 - 1], Purpose.TARGET, key(3))
    assert uniforms([2**200 + 5], Purpose.TARGET, key(3)) == uniforms([5], Purpose.TARGET, key(3))


def test_empty() -> None:
    assert uniforms([1, 2], Purpose.ACCEPT, [[], []]).shape == (2, 0)
    assert uniforms([], Purpose.ACCEPT, []).shape == (0, 0)


def test_uniform_and_uncorrelated() -> None:
    """Moments, the cells of a histogram, and neighbours in every counter; 5 sigma."""
    counters = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), -1)
    u = uniforms([3] * 256, Purpose.ACCEPT, counters)
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / u.size) ** 0.5
    cells = np.bincount((u.ravel() * 100).astype(int), minlength=100)
    chi_square = ((cells - u.size / 100) ** 2 / (u.size / 100)).sum()
    assert abs(chi_square - 99) < 5 * (2 * 99) ** 0.5
    other_seed = uniforms([4] * 256, Purpose.ACCEPT, counters)
    other_purpose = uniforms([3] * 256, Purpose.EXTRA, counters)
    swapped = np.triu_indices(256, 1)
    pairs = [(u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u, other_seed), (u, other_purpose), (u[swapped], u.T[swapped])]
    for left, right in pairs:
        assert abs(((left - 0.5) * (right - 0.5)).mean()) < 5 * (1 / 144 / left.size) ** 0.5


def test_fresh_seeds() -> None:
    seeds = {fresh_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


PINNED = [0.03124168619502643, 0.4572792370053209]
