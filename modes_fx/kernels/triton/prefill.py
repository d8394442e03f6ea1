"""Triton kernels for many tokens: two GEMMs over the kept pairs, and the sum over each token.

Both GEMMs are persistent: as many programs as the device runs at once take tiles in turn, and how
many tiles there are is read on the device. Tiles are ordered by expert, then by block of columns,
then by block of rows, so that the programs in flight share a block of weights.

T tokens, K experts per token, E experts, H hidden size, I intermediate size; pair p = t * K + k;
BM x BN tiles, BK columns of the rows at a time.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(
    work, expert_start, tile_start,
    BLOCKS: tl.constexpr, E: tl.constexpr, E_P2: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Return the expert, first slot, end of the slots, and column block of one unit of work."""
    e = tl.arange(0, E_P2)
    ends = tl.load(tile_start + 1 + e, e < E, other=2147483647 // BLOCKS) * BLOCKS
    expert = tl.sum((ends <= work).to(tl.int32), 0)
    first_tile = tl.load(tile_start + expert)
    tiles = tl.load(tile_start + expert + 1) - first_tile
    place = work - first_tile * BLOCKS
    first = tl.load(expert_start + expert) + (place % tiles) * BM
    return expert, first, tl.load(expert_start + expert + 1), place // tiles


@triton.jit
def up_gemm(
    x, weight0, weight1, h, pair_weight, slot_pair, expert_start, tile_start, PROGRAMS,
    x_row, expert0, column0, inner0, expert1, column1, inner1, prologue_vectors, middle_vectors,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, E_P2: tl.constexpr, K: tl.constexpr,
    PROLOGUE: tl.constexpr, MIDDLE: tl.constexpr, STREAMS: tl.constexpr, ODD_FIRST: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write h[slot, :I] = MIDDLE(streams of PROLOGUE(x[token]) @ weights of the slot's expert).

    STREAMS: 1 or 2 accumulators over columns of their own, or 3 for two that take turns in one
    product, which is then loaded as a whole and split; ODD_FIRST says which of them comes first.
    """
    BLOCKS: tl.constexpr = (I + BN - 1) // BN
    WIDE: tl.constexpr = 2 * BN if STREAMS == 3 else BN
    total = tl.load(tile_start + E) * BLOCKS
    for work in tl.range(tl.program_id(0), total, PROGRAMS):
        expert, first, end, block = _tile(work, expert_start, tile_start, BLOCKS, E, E_P2, BM)
        slot = first + tl.arange(0, BM)
        inside_rows = (slot < end)[:, None]
        pair = tl.load(slot_pair + slot, slot < end, other=0)
        w = tl.load(pair_weight + pair, slot < end, other=0.0).to(tl.float32)[:, None]
        rows = x + (pair // K).to(tl.int64)[:, None] * x_row
        if STREAMS == 3:
            n = (block * WIDE + tl.arange(0, WIDE)) % (2 * I)
        else:
            n = (block * WIDE + tl.arange(0, WIDE)) % I
        k = tl.arange(0, BK)
        b0 = weight0 + expert.to(tl.int64) * expert0 + k[:, None] * inner0 + n[None, :] * column0
        b1 = weight1 + expert.to(tl.int64) * expert1 + k[:, None] * inner1 + n[None, :] * column1
        s0 = tl.zeros((BM, WIDE), tl.float32)
        s1 = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, H, BK):
            columns = (k0 + k)[None, :]
            if H % BK == 0:
                a = tl.load(rows + columns, inside_rows, other=0.0)
            else:
                a = tl.load(rows + columns, inside_rows & (columns < H), other=0.0)
            if PROLOGUE is not None:
                a = PROLOGUE(a.to(tl.float32), w, expert, columns, columns < H, prologue_vectors)
                if H % BK != 0:
                    a = tl.where(columns < H, a, 0.0)
            a = a.to(DOT)
            s0 = tl.dot(a, _weights(b0, k0, inner0, k, H, BK).to(DOT), s0, PRECISION)
            if STREAMS == 2:
                s1 = tl.dot(a, _weights(b1, k0, inner1, k, H, BK).to(DOT), s1, PRECISION)
        column = block * BN + tl.arange(0, BN)
        inside = (column < I)[None, :]
        if STREAMS == 3:
            even, odd = tl.split(tl.reshape(s0, (BM, BN, 2)))
            if ODD_FIRST:
                r = MIDDLE(odd, even, w, expert, column[None, :], inside, middle_vectors)
            else:
                r = MIDDLE(even, odd, w, expert, column[None, :], inside, middle_vectors)
        elif STREAMS == 2:
            r = MIDDLE(s0, s1, w, expert, column[None, :], inside, middle_vectors)
        else:
            r = MIDDLE(s0, w, expert, column[None, :], inside, middle_vectors)
        out = h + slot.to(tl.int64)[:, None] * I + column[None, :]
        tl.store(out, r.to(h.dtype.element_ty), inside_rows & inside)


@triton.jit
def _weights(pointers, k0, inner, k, K_SIZE: tl.constexpr, BK: tl.constexpr):
    """Load the [BK, .] part of an expert's matrix that begins at row k0."""
    if K_SIZE % BK == 0:
        return tl.load(pointers + k0 * inner)
    return tl.load(pointers + k0 * inner, (k0 + k < K_SIZE)[:, None], other=0.0)


@triton.jit
def down_gemm(
    h, weight, y, pair_weight, slot_pair, expert_start, tile_start, PROGRAMS,
    expert_stride, column_stride, inner_stride, tail_vectors,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, E_P2: tl.constexpr, K: tl.constexpr,
    TAIL: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, ATOMIC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write y[slot, :H] = TAIL(h[slot] @ weights of its expert); if ATOMIC, add it to y[token]."""
    BLOCKS: tl.constexpr = (H + BN - 1) // BN
    total = tl.load(tile_start + E) * BLOCKS
    for work in tl.range(tl.program_id(0), total, PROGRAMS):
        expert, first, end, block = _tile(work, expert_start, tile_start, BLOCKS, E, E_P2, BM)
        slot = first + tl.arange(0, BM)
        inside_rows = (slot < end)[:, None]
        pair = tl.load(slot_pair + slot, slot < end, other=0)
        w = tl.load(pair_weight + pair, slot < end, other=0.0).to(tl.float32)[:, None]
        column = block * BN + tl.arange(0, BN)
        k = tl.arange(0, BK)
        rows = h + slot.to(tl.int64)[:, None] * I
        b = weight + expert.to(tl.int64) * expert_stride + k[:, None] * inner_stride
        b += (column % H)[None, :] * column_stride
        acc = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, I, BK):
            columns = (k0 + k)[None, :]
            if I % BK == 0:
                a = tl.load(rows + columns, inside_rows, other=0.0)
            else:
                a = tl.load(rows + columns, inside_rows & (columns < I), other=0.0)
            factor = _weights(b, k0, inner_stride, k, I, BK)
            acc = tl.dot(a.to(DOT), factor.to(DOT), acc, PRECISION)
        inside = (column < H)[None, :]
        r = TAIL(acc, w, expert, column[None, :], inside, tail_vectors)
        if ATOMIC:
            out = y + (pair // K).to(tl.int64)[:, None] * H + column[None, :]
            tl.atomic_add(out, r, inside_rows & inside, sem="relaxed")
        else:
            out = y + slot.to(tl.int64)[:, None] * H + column[None, :]
            tl.store(out, r.to(y.dtype.element_ty), inside_rows & inside)


@triton.jit
def sum_pairs(
    y, pair_slot, out, T,
    H: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write out[t] = sum of y over the slots of a token's kept pairs; no other row is read."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (column < H)[None, :]
    acc = tl.zeros((BT, BN), tl.float32)
    for k in tl.static_range(K):
        slot = tl.load(pair_slot + t * K + k, t < T, other=-1)
        rows = y + slot.to(tl.int64)[:, None] * H + column[None, :]
        acc += tl.load(rows, (slot >= 0)[:, None] & inside, other=0.0).to(tl.float32)
    where = out + t.to(tl.int64)[:, None] * H + column[None, :]
    tl.store(where, acc.to(out.dtype.element_ty), (t < T)[:, None] & inside)
