"""The slot cache: bookkeeping on hand-made contents, then a long random run against fresh prefills."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fastllm_core.cache import SlotCache
from fastllm_core.layout import ancestors, chain, tree
from fastllm_core.models import LoadedModel
from fastllm_core.network import Network
from fastllm_core.testing import tiny_model


@pytest.fixture(scope="module")
def network() -> Network:
    model = tiny_model(num_hidden_layers=2, max_position_embeddings=1024, sharpness=1.0)
    return Network(LoadedModel("tiny", model, None, torch.device("cpu"), torch.float32))


def stores(cache: SlotCache) -> list[Tensor]:
    """Every key and value tensor, float[rows, heads, capacity, width], as views of the cache's own memory."""
    pairs = cache.layers(slice(0, len(cache.lengths)), cache.capacity)
    return [store for pair in pairs for store in pair]


@torch.inference_mode()
def number(cache: SlotCache) -> None:
    """Write 100 * row + slot everywhere (plus a thousand per store), so that each entry says where it came from."""
    for i, store in enumerate(stores(cache)):
        rows = torch.arange(store.shape[0])[:, None, None, None]
        store.copy_((1000 * i + 100 * rows + torch.arange(store.shape[2])[None, None, :, None]).expand_as(store))


def origins(cache: SlotCache, row: int, slots: int) -> list[int]:
    """Where the first slots of a row came from; all stores must agree."""
    found = [(store[row, :, :slots] - 1000 * i).long() for i, store in enumerate(stores(cache))]
    for entries in found:
        assert torch.equal(entries, found[0][:1, :, :1].expand_as(entries))
    return found[0][0, :, 0].tolist()


def made(network: Network, rows: int, slots: int, block: int = 8) -> SlotCache:
    cache = SlotCache(network, block)
    cache.reserve(rows, slots)
    number(cache)
    return cache


def test_extents_are_whole_blocks(network: Network) -> None:
    cache = SlotCache(network, 8)
    assert [cache.extent(slots) for slots in (0, 1, 8, 9, 16, 17)] == [0, 8, 8, 16, 16, 24]


def test_growing_keeps_what_is_stored(network: Network) -> None:
    cache = made(network, 1, 5)
    assert (cache.lengths, cache.capacity) == ([0], 8)
    cache.lengths[0] = 5
    cache.reserve(1, 20)  # longer
    assert (cache.lengths, cache.capacity) == ([5], 24)
    cache.reserve(2, 3)  # wider, and not shorter
    assert (cache.lengths, cache.capacity) == ([5, 0], 24)
    assert origins(cache, 0, 8) == list(range(8))
    assert not any(store[1].any() or store[0, :, 8:].any() for store in stores(cache))  # what is new is 0


def test_rows_double_and_enough_room_changes_nothing(network: Network) -> None:
    cache = made(network, 2, 8)
    cache.reserve(3, 8)
    assert len(cache.lengths) == 4
    cache.reserve(9, 8)
    assert len(cache.lengths) == 9
    before = [store.data_ptr() for store in stores(cache)]
    cache.reserve(4, 8)
    cache.reserve(9, 1)
    assert [store.data_ptr() for store in stores(cache)] == before


def test_a_forward_gets_the_caches_own_memory(network: Network) -> None:
    cache = made(network, 3, 16)
    for keys, values in cache.layers(slice(1, 3), 8):
        assert keys.shape == values.shape == (2, 2, 8, 8)
        with torch.inference_mode():
            keys.fill_(-1.0)
    assert origins(cache, 0, 16) == list(range(16))
    assert all((keys[1:, :, :8] == -1).all() and (keys[1:, :, 8:] >= 0).all() for keys in stores(cache)[::2])


def test_committing_a_chain_only_counts(network: Network) -> None:
    cache = made(network, 3, 16)
    before = [store.clone() for store in stores(cache)]
    cache.commit([4, 0, 9], [3, 0, 1], None)
    assert cache.lengths == [8, 1, 11]
    assert all(torch.equal(old, new) for old, new in zip(before, stores(cache), strict=True))


def test_committing_a_tree_gathers_the_path_behind_the_root(network: Network) -> None:
    cache = made(network, 3, 16)
    # Row 0: sources 6, 7, 9 overlap destinations 5, 6, 7.  Row 1: nothing kept.  Row 2: in place, up to the end.
    path = torch.tensor([[1, 2, 4], [-1, -1, -1], [0, 1, -1]])
    cache.commit([4, 7, 12], [3, 0, 2], path)
    assert cache.lengths == [8, 8, 15]
    assert origins(cache, 0, 8) == [0, 1, 2, 3, 4, 6, 7, 9]
    assert origins(cache, 1, 8) == [100 + slot for slot in range(8)]
    assert origins(cache, 2, 16) == [200 + slot for slot in range(16)]


def test_a_committed_tree_path_may_be_cut(network: Network) -> None:
    """The text may end inside the kept path: fewer nodes are committed than accepted."""
    cache = made(network, 1, 16)
    cache.commit([2], [1], torch.tensor([[2, 3, 5]]))
    assert cache.lengths == [4]
    assert origins(cache, 0, 4) == [0, 1, 2, 5]


def test_committing_leaves_other_rows_alone(network: Network) -> None:
    cache = made(network, 4, 16)
    cache.lengths[3] = 7
    cache.commit([2, 2], [1, 1], torch.tensor([[3], [1]]))
    assert cache.lengths == [4, 4, 0, 7]
    assert [origins(cache, 0, 4)[-1], origins(cache, 1, 4)[-1]] == [6, 104]
    assert origins(cache, 3, 16) == [300 + slot for slot in range(16)]


def test_moving_and_releasing(network: Network) -> None:
    cache = made(network, 3, 16)
    cache.lengths[:] = [3, 5, 9]
    cache.move(2, 0)
    assert cache.lengths == [9, 5, 0]
    assert origins(cache, 0, 9) == [200 + slot for slot in range(9)]
    assert origins(cache, 1, 16) == [100 + slot for slot in range(16)]
    cache.release(1)
    assert cache.lengths == [9, 0, 0]
    cache.release(7)  # never reserved
    cache.move(7, 0)
    assert cache.lengths == [9, 0, 0]


def test_copying_the_first_slots_of_a_row(network: Network) -> None:
    cache = made(network, 3, 16)
    cache.lengths[:] = [3, 5, 9]
    cache.copy(2, 0, 7)
    assert cache.lengths == [7, 5, 9]
    assert origins(cache, 0, 7) == [200 + slot for slot in range(7)]
    assert origins(cache, 1, 16) == [100 + slot for slot in range(16)]
    assert origins(cache, 2, 9) == [200 + slot for slot in range(9)]


def test_a_layer_that_keeps_nothing_has_an_empty_pair() -> None:
    network = Network(LoadedModel("tiny", tiny_model(), None, torch.device("cpu"), torch.float32))
    network.kv_shapes = (network.kv_shapes[0], None, *network.kv_shapes[2:])
    cache = SlotCache(network, 8)
    cache.reserve(2, 8)
    cache.reserve(2, 16)
    assert [keys.numel() > 0 for keys, _ in cache.layers(slice(0, 2), 8)] == [True, False, True, True]
    cache.commit([0, 0], [1, 1], torch.tensor([[1], [1]]))
    cache.move(1, 0)
    assert cache.lengths[0] == 2


def assert_holds(cache: SlotCache, network: Network, texts: list[list[int]]) -> None:
    """Each row holds what a fresh prefill of all its tokens but the last would have written."""
    longest = max(len(text) for text in texts)
    fresh = SlotCache(network, cache.block)
    fresh.reserve(len(texts), longest)
    padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    rows = chain(padded, torch.zeros(len(texts), dtype=torch.long), fresh.capacity)
    network.forward(rows, fresh.layers(slice(0, len(texts)), fresh.capacity))
    for row, text in enumerate(texts):
        used = len(text) - 1
        assert cache.lengths[row] == used
        for mine, theirs in zip(stores(cache), stores(fresh), strict=True):
            torch.testing.assert_close(mine[row, :, :used], theirs[row, :, :used], rtol=0, atol=1e-5)


def test_two_hundred_rounds_of_rolling_back(network: Network) -> None:
    """Chains and trees, any acceptance, rows that move and start again: nothing rejected survives."""
    rng = random.Random(0)
    cache = SlotCache(network, 16)
    cache.reserve(3, 16)
    texts = [[rng.randrange(64)] for _ in range(3)]
    for step in range(200):
        nodes = rng.randrange(0, 7)
        starts = [len(text) - 1 for text in texts]
        extent = cache.extent(max(starts) + nodes + 1)
        cache.reserve(3, extent)
        tokens = [[text[-1], *(rng.randrange(64) for _ in range(nodes))] for text in texts]
        is_tree = rng.random() < 0.6
        parents = [[rng.randrange(-1, i) if is_tree else i - 1 for i in range(nodes)] for _ in texts]
        if is_tree:
            sees = ancestors(torch.tensor(parents, dtype=torch.long).reshape(3, nodes))
            inputs = tree(torch.tensor(tokens), sees, sees.sum(-1) - 1, torch.tensor(starts), extent)
        else:
            inputs = chain(torch.tensor(tokens), torch.tensor(starts), extent)
        network.forward(inputs, cache.layers(slice(0, 3), extent))
        paths = [kept_path(rng, row) for row in parents]
        padded = torch.tensor([path + [-1] * (nodes - len(path)) for path in paths], dtype=torch.long).reshape(3, nodes)
        cache.commit(starts, [len(path) for path in paths], padded if is_tree else None)
        for text, row, path in zip(texts, tokens, paths, strict=True):
            text += [*(row[node + 1] for node in path), rng.randrange(64)]
        if step % 20 == 19:  # row 2 takes the place of row 0, whose slot starts with a new text of one token
            cache.move(2, 0)
            cache.release(2)
            texts = [texts[2], texts[1], [rng.randrange(64)]]
        assert_holds(cache, network, texts)


def kept_path(rng: random.Random, parents: list[int]) -> list[int]:
    """A path from the root to a random node, or nothing."""
    node = rng.randrange(-1, len(parents))
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path
