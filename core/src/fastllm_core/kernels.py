"""What a decoder layer of few rows is made of on a GPU: five kernels, each bound by the weights or the cache it reads.

A row's result is the same bits beside how many others it is computed, up to `TILE` of them: every sum runs over the
same blocks in the same order, and a slot that is masked adds exactly nothing.

Root-mean-square norms are taken apart (`fused.py`): who writes the residual stream also writes it times the next norm's
gains, and the sum of its squares by groups of `GROUP` numbers; who reads it divides by the root behind the product.
"""

from __future__ import annotations

from typing import Any, Final

import triton
import triton.language as tl

from . import fused

GROUP: Final = tl.constexpr(fused.GROUP)
TILE: Final = tl.constexpr(fused.TILE)

JIT: Any = triton.jit(do_not_specialize=["rows", "parts"])
"""One binary for any number of rows: another could round otherwise. And nothing is compiled again as a text grows."""


@triton.jit
def _product(
    x, x_stride, weights, first, count, rows, width,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """float32[M, N]: rows of x times rows `first...` of a matrix float[count, width]."""
    row = tl.arange(0, M)
    column = first + tl.arange(0, N)
    inner = tl.arange(0, K)
    mine = x + row[:, None] * x_stride + inner[None, :]
    theirs = weights + column.to(tl.int64)[:, None] * width + inner[None, :]
    live, there = (row < rows)[:, None], (column < count)[:, None]
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, width, K):
        if EVEN:
            a = tl.load(mine + start, mask=live, other=0.0)
            b = tl.load(theirs + start, eviction_policy="evict_first")
        else:
            inside = (start + inner < width)[None, :]
            a = tl.load(mine + start, mask=live & inside, other=0.0)
            b = tl.load(theirs + start, mask=there & inside, other=0.0, eviction_policy="evict_first")
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def _roots(squares, stride, rows, groups, eps, size, M: tl.constexpr, GROUPS: tl.constexpr):
    """float32[M]: one over the root mean square of each row, of the squares of its groups."""
    row, group = tl.arange(0, M), tl.arange(0, GROUPS)
    inside = (row < rows)[:, None] & (group < groups)[None, :]
    sums = tl.load(squares + row[:, None] * stride + group[None, :], mask=inside, other=0.0)
    return tl.rsqrt(tl.sum(sums, 1) / size + eps)


@JIT
def enter(
    tokens, table, states, positions, frequencies, scaling, gains, stream, scaled, squares, cosines, sines, size,
    TOKENS: tl.constexpr, SCALED: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The residual stream of one row a program: of tokens, int64[rows], or of given states, float[rows, size].

    cosines, sines: float[rows, HALF], by which every layer turns the row's queries and keys.
    """
    row, at = tl.program_id(0), tl.arange(0, SIZE)
    pair = tl.arange(0, HALF)
    angle = tl.load(positions + row).to(tl.float32) * tl.load(frequencies + pair)
    tl.store(cosines + row * HALF + pair, (tl.cos(angle) * scaling).to(cosines.dtype.element_ty))
    tl.store(sines + row * HALF + pair, (tl.sin(angle) * scaling).to(sines.dtype.element_ty))
    inside = at < size
    if TOKENS:
        token = tl.load(tokens + row)
        numbers = tl.load(table + token * size + at, mask=inside, other=0.0)
    else:
        numbers = tl.load(states + row * size + at, mask=inside, other=0.0)
    tl.store(stream + row * size + at, numbers, mask=inside)
    if SCALED:
        wide = numbers.to(tl.float32)
        gain = tl.load(gains + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(scaled + row * size + at, (wide * gain).to(numbers.dtype), mask=inside)
        sums = tl.sum(tl.reshape(wide * wide, (SIZE // GROUP, GROUP)), 1)
        group = tl.arange(0, SIZE // GROUP)
        tl.store(squares + row * (size // GROUP) + group, sums, mask=group < size // GROUP)


@JIT
def project(
    x, x_stride, squares, squares_stride, eps, first, second, third, bias1, bias2, bias3, out, rows, width,
    count1, count2, count3,
    BIAS: tl.constexpr, GROUPS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Normed rows times up to three matrices, float[count, width], next to each other: queries, keys and values.

    x: float[rows, width], times the norm's gains.  squares: float32[rows, width // GROUP].  A count is 0 where there is
    no such matrix.
    """
    tile = tl.program_id(0)
    tiles1, tiles2 = tl.cdiv(count1, N), tl.cdiv(count2, N)
    weights, bias, count, start, before = first, bias1, count1, tile * N, 0
    if tile >= tiles1 + tiles2:
        weights, bias, count, start, before = third, bias3, count3, (tile - tiles1 - tiles2) * N, count1 + count2
    elif tile >= tiles1:
        weights, bias, count, start, before = second, bias2, count2, (tile - tiles1) * N, count1
    column = start + tl.arange(0, N)
    total = _product(x, x_stride, weights, start, count, rows, width, M, N, K, EVEN)
    total *= _roots(squares, squares_stride, rows, width // GROUP, eps, width, M, GROUPS)[:, None]
    there = column < count
    if BIAS:
        total += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
    row = tl.arange(0, M)
    places = out + row.to(tl.int64)[:, None] * (count1 + count2 + count3) + (before + column)[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & there[None, :])


@JIT
def gate(
    x, squares, eps, gates, ups, out, rows, width, count,
    GROUPS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """silu(x G) * (x U) of normed rows: the wide half of a gated MLP."""
    start = tl.program_id(0) * N
    column = start + tl.arange(0, N)
    row = tl.arange(0, M)
    inner = tl.arange(0, K)
    mine = x + row[:, None] * width + inner[None, :]
    theirs = column.to(tl.int64)[:, None] * width + inner[None, :]
    live, there = (row < rows)[:, None], (column < count)[:, None]
    left, right = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
    for at in range(0, width, K):
        if EVEN:
            a = tl.load(mine + at, mask=live, other=0.0)
            b = tl.load(gates + theirs + at, eviction_policy="evict_first")
            c = tl.load(ups + theirs + at, eviction_policy="evict_first")
        else:
            inside = (at + inner < width)[None, :]
            a = tl.load(mine + at, mask=live & inside, other=0.0)
            b = tl.load(gates + theirs + at, mask=there & inside, other=0.0, eviction_policy="evict_first")
            c = tl.load(ups + theirs + at, mask=there & inside, other=0.0, eviction_policy="evict_first")
        left = tl.dot(a, tl.trans(b), left, input_precision="ieee")
        right = tl.dot(a, tl.trans(c), right, input_precision="ieee")
    root = _roots(squares, width // GROUP, rows, width // GROUP, eps, width, M, GROUPS)[:, None]
    left, right = left * root, right * root
    result = left / (1.0 + tl.exp(-left)) * right
    places = out + row.to(tl.int64)[:, None] * count + column[None, :]
    tl.store(places, result.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < count)[None, :])


@JIT
def add(
    x, weights, bias, stream, gains, after, scaled, squares, rows, width, count,
    BIAS: tl.constexpr, SCALED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows times a matrix, added to the residual stream, float[rows, count]: the narrow end of a sub-layer.

    after: the new stream.  scaled, squares: what the next norm needs of it, if one follows.
    """
    start = tl.program_id(0) * N
    column = start + tl.arange(0, N)
    row = tl.arange(0, M)
    total = _product(x, width, weights, start, count, rows, width, M, N, K, EVEN)
    there = column < count
    if BIAS:
        total += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
    places, inside = row[:, None] * count + column[None, :], (row < rows)[:, None] & there[None, :]
    summed = (total + tl.load(stream + places, mask=inside, other=0.0).to(tl.float32)).to(after.dtype.element_ty)
    tl.store(after + places, summed, mask=inside)
    if SCALED:
        wide = summed.to(tl.float32)
        gain = tl.load(gains + column, mask=there, other=0.0).to(tl.float32)
        tl.store(scaled + places, (wide * gain[None, :]).to(summed.dtype), mask=inside)
        sums = tl.sum(tl.reshape(wide * wide, (M, N // GROUP, GROUP)), 2)
        group = start // GROUP + tl.arange(0, N // GROUP)
        groups = count // GROUP
        known = (row < rows)[:, None] & (group < groups)[None, :]
        tl.store(squares + row[:, None] * groups + group[None, :], sums, mask=known)


@triton.jit
def _rotated(
    source, gains, cosines, sines, place, eps, inside, dtype: tl.constexpr,
    WIDTH: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    """float[rows, WIDTH]: heads turned as their rows' places say.  source: pointers to each row's first number."""
    at = tl.arange(0, WIDTH)
    half: tl.constexpr = WIDTH // 2
    other = (at + half) % WIDTH
    here = tl.load(source[:, None] + at[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    there = tl.load(source[:, None] + other[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    if NORMED:
        root = tl.rsqrt(tl.sum(here * here, 1) / WIDTH + eps)[:, None]
        here = (here * root).to(dtype).to(tl.float32) * tl.load(gains + at).to(tl.float32)[None, :]
        there = (there * root).to(dtype).to(tl.float32) * tl.load(gains + other).to(tl.float32)[None, :]
        here, there = here.to(dtype).to(tl.float32), there.to(dtype).to(tl.float32)
    turn = place[:, None] * half + (at % half)[None, :]
    cos = tl.load(cosines + turn, mask=inside[:, None], other=0.0).to(tl.float32)
    sin = tl.load(sines + turn, mask=inside[:, None], other=0.0).to(tl.float32)
    sin = tl.where(at[None, :] < half, -sin, sin)
    return ((here * cos).to(dtype).to(tl.float32) + (there * sin).to(dtype).to(tl.float32)).to(dtype)


@JIT
def attend(
    heads, query_gains, key_gains, cosines, sines, slots, mask, keys, values, out, partial, extremes,
    key_batch, key_head, value_batch, value_head, rows, extent, head_count, eps, scale,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, NORMED: tl.constexpr, NEW: tl.constexpr, STEP: tl.constexpr,
    PART: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write rows' keys and values into their slots, and let their queries see what the mask says.

    heads: float[B * rows, (queries + 2 keys) * WIDTH], not turned yet.  mask: bool[B, rows, extent].  One program for
    TILE queries (rows of a group's heads, in turn) of one key head, over at most PART slots. If there are more, each
    leaves what it knows: weighted values in `partial`, float32[parts, B * rows, queries, WIDTH], greatest score and sum
    of weights in `extremes`, float32[parts, B * rows, queries, 2].
    """
    dtype: tl.constexpr = out.dtype.element_ty
    text, head = tl.program_id(0) // head_count, tl.program_id(0) % head_count
    queries = head_count * GROUPS
    line = (queries + 2 * head_count) * WIDTH
    at = tl.arange(0, WIDTH)

    new = tl.arange(0, NEW)
    known = new < rows
    place = text * rows + new
    source = heads + place.to(tl.int64) * line + (queries + head) * WIDTH
    key = _rotated(source, key_gains, cosines, sines, place, eps, known, dtype, WIDTH, NORMED)
    value = tl.load(source[:, None] + head_count * WIDTH + at[None, :], mask=known[:, None], other=0.0)
    slot = tl.load(slots + place, mask=known, other=0)
    keys += text.to(tl.int64) * key_batch + head.to(tl.int64) * key_head
    values += text.to(tl.int64) * value_batch + head.to(tl.int64) * value_head
    tl.store(keys + slot[:, None] * WIDTH + at[None, :], key, mask=known[:, None])
    tl.store(values + slot[:, None] * WIDTH + at[None, :], value, mask=known[:, None])

    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    group, row = index // rows, index % rows
    live = group < GROUPS
    place = text * rows + row
    source = heads + place.to(tl.int64) * line + (head * GROUPS + group) * WIDTH
    query = _rotated(source, query_gains, cosines, sines, place, eps, live, dtype, WIDTH, NORMED)
    tl.debug_barrier()  # other threads wrote the new keys and values

    best = tl.full(
        (TILE,), -1e38, tl.float32
    )  # finite: a part in which a row sees nothing must not subtract infinities
    weight = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, WIDTH), tl.float32)
    begin = tl.program_id(2) * PART
    for start in range(begin, tl.minimum(begin + PART, extent), STEP):
        seen = start + tl.arange(0, STEP)
        inside = seen < extent
        stored = tl.load(keys + seen[:, None] * WIDTH + at[None, :], mask=inside[:, None], other=0.0)
        score = tl.dot(query, tl.trans(stored), input_precision="ieee") * scale
        may = tl.load(
            mask + place.to(tl.int64)[:, None] * extent + seen[None, :], mask=live[:, None] & inside[None, :], other=0
        )
        score = tl.where(may != 0, score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        share = tl.exp(score - higher[:, None])
        fade = tl.exp(best - higher)
        weight = weight * fade + tl.sum(share, 1)
        kept = tl.load(values + seen[:, None] * WIDTH + at[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(share.to(dtype), kept, total * fade[:, None], input_precision="ieee")
        best = higher
    place = place.to(tl.int64) * queries + head * GROUPS + group
    if not SPLIT:
        result = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
        tl.store(out + place[:, None] * WIDTH + at[None, :], result.to(dtype), mask=live[:, None])
    else:
        batch = tl.num_programs(0) // head_count
        place += tl.program_id(2).to(tl.int64) * batch * rows * queries
        tl.store(partial + place[:, None] * WIDTH + at[None, :], total, mask=live[:, None])
        tl.store(extremes + place * 2, best, mask=live)
        tl.store(extremes + place * 2 + 1, weight, mask=live)


@JIT
def merge(partial, extremes, out, count, parts, WIDTH: tl.constexpr):
    """What several parts of `attend` know, together: one program for each of `count` heads of rows."""
    mine, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    best = tl.full((1,), -1e38, tl.float32)
    weight = tl.zeros((1,), tl.float32)
    total = tl.zeros((1, WIDTH), tl.float32)
    for part in range(parts):
        place = part * count + mine
        other = tl.load(extremes + place * 2)
        higher = tl.maximum(best, other)
        fade, share = tl.exp(best - higher), tl.exp(other - higher)
        weight = weight * fade + tl.load(extremes + place * 2 + 1) * share
        total = total * fade[:, None] + tl.load(partial + place * WIDTH + at)[None, :] * share[:, None]
        best = higher
    result = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    tl.store(out + mine * WIDTH + at[None, :], result.to(out.dtype.element_ty))


@triton.jit
def _ranked(numbers, column, inside):
    """The greatest of some numbers, where it first stands, the next one and the least."""
    high = tl.max(tl.where(inside, numbers, float("-inf")), 0)
    first = tl.min(tl.where(inside & (numbers == high), column, 2147483647), 0)
    second = tl.max(tl.where(inside & (column != first), numbers, float("-inf")), 0)
    return high, first, second, tl.min(tl.where(inside, numbers, float("inf")), 0)


@JIT
def rank(logits, found, firsts, size, PART: tl.constexpr):
    """Of PART logits of a row, float[rows, size]: the greatest, the next and the least of them, and the first's column.

    found: float32[rows, parts, 3].  firsts: int64[rows, parts].
    """
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    inside = column < size
    numbers = tl.load(logits + row.to(tl.int64) * size + column, mask=inside, other=0.0).to(tl.float32)
    high, first, second, low = _ranked(numbers, column, inside)
    place = row * tl.num_programs(1) + part
    tl.store(found + place * 3, high)
    tl.store(found + place * 3 + 1, second)
    tl.store(found + place * 3 + 2, low)
    tl.store(firsts + place, first)


@JIT
def choose(found, firsts, tokens, close, parts, size, noise, PARTS: tl.constexpr):
    """What `ties.best_of` says of a row, of what `rank` found.  noise: of a logit, as a share of the largest."""
    row, part = tl.program_id(0), tl.arange(0, PARTS)
    inside = part < parts
    place = row * parts + part
    highs = tl.load(found + place * 3, mask=inside, other=0.0)
    high, winner, other, _ = _ranked(highs, part, inside)
    seconds = tl.load(found + place * 3 + 1, mask=inside, other=0.0)
    second = tl.maximum(other, tl.max(tl.where(part == winner, seconds, float("-inf")), 0))
    low = tl.min(tl.where(inside, tl.load(found + place * 3 + 2, mask=inside, other=0.0), float("inf")), 0)
    first = tl.load(firsts + row * parts + tl.minimum(winner, parts - 1))
    tl.store(tokens + row, tl.minimum(first, size - 1))
    tl.store(close + row, second >= high - noise * tl.maximum(-low, high))
