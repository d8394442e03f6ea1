"""Triton kernels of the gate and of the compaction: which pairs are kept, in order of their expert.

A *slot* is the place of a kept pair among all kept pairs, sorted by expert and, within one, by
pair, so the result never depends on timing. Buffers have the size of all pairs; how many slots are
used is known on the device alone: nothing waits for it. Where there are few pairs, one program does
all; else blocks of tokens are counted, and then placed.

T tokens, K experts per token, E experts; ``*_P2`` the next power of two; pair p = t * K + k.
"""

import triton
import triton.language as tl


@triton.jit
def _decide(
    index, weight, modality, tokens, theta, t, k, T, beta,
    index_row, index_column, weight_row, weight_column,
    E: tl.constexpr, K: tl.constexpr, K_P2: tl.constexpr,
    RENORMALISED: tl.constexpr, REWEIGHTED: tl.constexpr, MIN_K: tl.constexpr,
):  # fmt: skip
    """Return the kept experts and weights of tokens, [BT, K_P2]; see ``reference.gate``."""
    inside = (t < T)[:, None] & (k < K)[None, :]
    ids = tl.load(index + t[:, None] * index_row + k[None, :] * index_column, inside, other=E)
    place = t[:, None] * weight_row + k[None, :] * weight_column
    w = tl.load(weight + place, inside, other=0.0).to(tl.float32)
    share = w
    if RENORMALISED:
        total = tl.sum(w, 1)[:, None]
        share = tl.where(total == 0.0, 0.0, w / tl.where(total == 0.0, 1.0, total))
    code = tl.load(modality + t, t < T, other=0).to(tl.int32)
    threshold = tl.load(theta + code)[:, None]
    skip = share < threshold
    if MIN_K > 0:
        # A token's shares are compared two at a time; NaN is the largest, as in a torch sort.
        nan = share != share
        above = tl.zeros(share.shape, tl.int32)
        for other in tl.static_range(K):
            it = (k == other)[None, :]
            its_nan = tl.sum((it & nan).to(tl.int32), 1)[:, None] > 0
            its_share = tl.sum(tl.where(it & (share == share), share, 0.0), 1)[:, None]
            larger = (its_nan & (nan == 0)) | ((its_nan == 0) & (its_share > share))
            equal = (its_nan & nan) | ((its_nan == 0) & (its_share == share))
            above += (larger | (equal & (k > other)[None, :])).to(tl.int32)
        skip = skip & ((above >= MIN_K) | (threshold == float("inf")))
    if REWEIGHTED:
        mass = tl.sum(tl.where(skip | (inside == 0), 0.0, share), 1)
        all_mass = tl.sum(tl.where(inside, share, 0.0), 1)
        mass = (mass / tl.where(all_mass == 0.0, 1.0, all_mass))[:, None]
        some = tl.max((skip & inside).to(tl.int32), 1)[:, None] > 0
        scale = tl.exp2(-beta * tl.log2(tl.where(some & (mass > 0.0), mass, 1.0)))
        w = (w * scale).to(weight.dtype.element_ty).to(tl.float32)
    if tokens is not None:
        reached = tl.load(tokens)
        tl.device_assert((reached == T) | (reached == 0), "the modality of these tokens is unknown")
        # Where asserts are compiled out: a result nobody can take for right.
        w = tl.where((reached == T) | (reached == 0), w, float("nan"))
    return tl.where(skip, E, ids), tl.where(skip, 0.0, w), inside


@triton.jit
def _chosen(
    index, weight, modality, tokens, theta, kept_index, kept_weight, t, k, T, beta,
    index_row, index_column, weight_row, weight_column,
    E: tl.constexpr, K: tl.constexpr, K_P2: tl.constexpr, GATED: tl.constexpr,
    RENORMALISED: tl.constexpr, REWEIGHTED: tl.constexpr, MIN_K: tl.constexpr,
):  # fmt: skip
    """Return the experts of tokens, after the gate where it is part of the kernel; E if skipped."""
    if GATED:
        ids, w, inside = _decide(
            index, weight, modality, tokens, theta, t, k, T, beta,
            index_row, index_column, weight_row, weight_column,
            E, K, K_P2, RENORMALISED, REWEIGHTED, MIN_K,
        )  # fmt: skip
        pair = t[:, None] * K + k[None, :]
        tl.store(kept_index + pair, ids.to(kept_index.dtype.element_ty), inside)
        tl.store(kept_weight + pair, w.to(kept_weight.dtype.element_ty), inside)
    else:
        inside = (t < T)[:, None] & (k < K)[None, :]
        ids = tl.load(index + t[:, None] * K + k[None, :], inside, other=E)
    return tl.minimum(ids, E).to(tl.int32)


@triton.jit
def gate_tokens(
    index, weight, modality, tokens, theta, kept_index, kept_weight, T, beta,
    index_row, index_column, weight_row, weight_column,
    E: tl.constexpr, K: tl.constexpr, K_P2: tl.constexpr, BT: tl.constexpr,
    RENORMALISED: tl.constexpr, REWEIGHTED: tl.constexpr, MIN_K: tl.constexpr,
):  # fmt: skip
    """Write the kept experts and weights of BT tokens a program."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    k = tl.arange(0, K_P2)
    ids, w, inside = _decide(
        index, weight, modality, tokens, theta, t, k, T, beta,
        index_row, index_column, weight_row, weight_column,
        E, K, K_P2, RENORMALISED, REWEIGHTED, MIN_K,
    )  # fmt: skip
    pair = t[:, None] * K + k[None, :]
    tl.store(kept_index + pair, ids.to(kept_index.dtype.element_ty), inside)
    tl.store(kept_weight + pair, w.to(kept_weight.dtype.element_ty), inside)


@triton.jit
def _store_starts(
    expert_start, tile_start, count, E: tl.constexpr, E_P2: tl.constexpr, BM: tl.constexpr
):
    """Write where each expert's slots and tiles of BM slots begin, and return the former."""
    e = tl.arange(0, E_P2)
    tiles = (count + BM - 1) // BM
    start = tl.cumsum(count, 0) - count
    tl.store(expert_start + 1 + e, start + count, e < E)
    tl.store(tile_start + 1 + e, tl.cumsum(tiles, 0), e < E)
    tl.store(expert_start, 0)
    tl.store(tile_start, 0)
    return start


@triton.jit
def _place(
    ids, t, k, base, slot_pair, pair_slot, T,
    E: tl.constexpr, E_P2: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Give the kept pairs of N places their slots; return where each expert's next slot is."""
    ids = tl.reshape(ids, (N,))
    inside = tl.reshape((t < T)[:, None] & (k < K)[None, :], (N,))
    pair = tl.reshape(t[:, None] * K + k[None, :], (N,))
    hit = (ids[:, None] == tl.arange(0, E_P2)[None, :]).to(tl.int32)
    slot = tl.sum(hit * (tl.cumsum(hit, 0) - 1 + base[None, :]), 1)
    tl.store(slot_pair + slot, pair, inside & (ids < E))
    tl.store(pair_slot + pair, tl.where(ids < E, slot, -1), inside)
    return base + tl.sum(hit, 0)


@triton.jit
def sort_pairs(
    index, weight, modality, tokens, theta, kept_index, kept_weight,
    slot_pair, pair_slot, expert_start, tile_start, T, beta,
    index_row, index_column, weight_row, weight_column,
    E: tl.constexpr, E_P2: tl.constexpr, K: tl.constexpr, K_P2: tl.constexpr,
    BT: tl.constexpr, BM: tl.constexpr, GATED: tl.constexpr,
    RENORMALISED: tl.constexpr, REWEIGHTED: tl.constexpr, MIN_K: tl.constexpr,
):  # fmt: skip
    """Gate and compact all pairs in one program."""
    k = tl.arange(0, K_P2)
    count = tl.zeros((E_P2,), tl.int32)
    for first in range(0, T, BT):
        t = first + tl.arange(0, BT)
        ids = _chosen(
            index, weight, modality, tokens, theta, kept_index, kept_weight, t, k, T, beta,
            index_row, index_column, weight_row, weight_column,
            E, K, K_P2, GATED, RENORMALISED, REWEIGHTED, MIN_K,
        )  # fmt: skip
        flat = tl.reshape(ids, (BT * K_P2,))
        count += tl.histogram(flat, E_P2, mask=flat < E)
    base = _store_starts(expert_start, tile_start, count, E, E_P2, BM)
    for first in range(0, T, BT):
        t = first + tl.arange(0, BT)
        # Decided again rather than read back, which would need the writes to be visible.
        ids = _chosen(
            index, weight, modality, tokens, theta, kept_index, kept_weight, t, k, T, beta,
            index_row, index_column, weight_row, weight_column,
            E, K, K_P2, GATED, RENORMALISED, REWEIGHTED, MIN_K,
        )  # fmt: skip
        base = _place(ids, t, k, base, slot_pair, pair_slot, T, E, E_P2, K, BT * K_P2)


@triton.jit
def count_blocks(
    index, weight, modality, tokens, theta, kept_index, kept_weight, counts, T, beta,
    index_row, index_column, weight_row, weight_column,
    E: tl.constexpr, E_P2: tl.constexpr, K: tl.constexpr, K_P2: tl.constexpr,
    BT: tl.constexpr, STEPS: tl.constexpr, GATED: tl.constexpr,
    RENORMALISED: tl.constexpr, REWEIGHTED: tl.constexpr, MIN_K: tl.constexpr,
):  # fmt: skip
    """Gate a block of BT * STEPS tokens and write how many pairs each expert has in it."""
    block = tl.program_id(0)
    k = tl.arange(0, K_P2)
    count = tl.zeros((E_P2,), tl.int32)
    for step in range(STEPS):
        t = (block * STEPS + step) * BT + tl.arange(0, BT)
        ids = _chosen(
            index, weight, modality, tokens, theta, kept_index, kept_weight, t, k, T, beta,
            index_row, index_column, weight_row, weight_column,
            E, K, K_P2, GATED, RENORMALISED, REWEIGHTED, MIN_K,
        )  # fmt: skip
        flat = tl.reshape(ids, (BT * K_P2,))
        count += tl.histogram(flat, E_P2, mask=flat < E)
    tl.store(counts + block * E_P2 + tl.arange(0, E_P2), count)


@triton.jit
def place_blocks(
    index, counts, slot_pair, pair_slot, expert_start, tile_start, T, BLOCKS,
    E: tl.constexpr, E_P2: tl.constexpr, K: tl.constexpr, K_P2: tl.constexpr,
    BT: tl.constexpr, STEPS: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Give the pairs of a block their slots, from the counts of all blocks."""
    block = tl.program_id(0)
    e = tl.arange(0, E_P2)
    total = tl.zeros((E_P2,), tl.int32)
    before = tl.zeros((E_P2,), tl.int32)
    for first in range(0, BLOCKS, ROWS):
        row = first + tl.arange(0, ROWS)
        place = row[:, None] * E_P2 + e[None, :]
        some = tl.load(counts + place, (row < BLOCKS)[:, None], other=0)
        total += tl.sum(some, 0)
        before += tl.sum(tl.where((row < block)[:, None], some, 0), 0)
    start = tl.cumsum(total, 0) - total
    if block == 0:
        _store_starts(expert_start, tile_start, total, E, E_P2, BM)
    base = start + before
    k = tl.arange(0, K_P2)
    for step in range(STEPS):
        t = (block * STEPS + step) * BT + tl.arange(0, BT)
        inside = (t < T)[:, None] & (k < K)[None, :]
        ids = tl.load(index + t[:, None] * K + k[None, :], inside, other=E)
        ids = tl.minimum(ids, E).to(tl.int32)
        base = _place(ids, t, k, base, slot_pair, pair_slot, T, E, E_P2, K, BT * K_P2)
