"""Triton kernels for one token at a time: no sorting, and the program of a skipped pair ends.

A GEMM of one row is bound by reading weights: each program reads few columns in wide loads, and one
kept pair alone gives every multiprocessor work.

T tokens, K experts per token, E experts, H hidden size, I intermediate size; pair p = t * K + k.
"""

import triton
import triton.language as tl


@triton.jit
def _products(
    row, weight, n, inner, column,
    SIZE: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr, PROLOGUE: tl.constexpr,
    w, expert, vectors, DOT: tl.constexpr,
):  # fmt: skip
    """Return the products [WIDE] of one row with columns n of an expert's matrix, in float32."""
    k = tl.arange(0, BK)
    acc = tl.zeros((WIDE, BK), tl.float32)
    pointers = weight + n[:, None] * column + k[None, :] * inner
    for k0 in range(0, SIZE, BK):
        if SIZE % BK == 0:
            a = tl.load(row + k0 + k)
            b = tl.load(pointers + k0 * inner)
        else:
            a = tl.load(row + k0 + k, k0 + k < SIZE, other=0.0)
            b = tl.load(pointers + k0 * inner, (k0 + k < SIZE)[None, :], other=0.0)
        if PROLOGUE is not None:
            a = PROLOGUE(a.to(tl.float32), w, expert, k0 + k, k0 + k < SIZE, vectors)
            a = tl.where(k0 + k < SIZE, a, 0.0)
        a = a.to(DOT).to(tl.float32)  # rounded as the rows of a GEMM are
        acc += b.to(DOT).to(tl.float32) * a[None, :]
    return tl.sum(acc, 1)


@triton.jit
def decode_up(
    x, weight0, weight1, h, pair_weight, index,
    x_row, expert0, column0, inner0, expert1, column1, inner1, prologue_vectors, middle_vectors,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
    PROLOGUE: tl.constexpr, MIDDLE: tl.constexpr, STREAMS: tl.constexpr, ODD_FIRST: tl.constexpr,
    DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write h[pair, :I] of kept pairs, one pair and BN columns a program; see ``up_gemm``."""
    pair = tl.program_id(0)
    expert = tl.load(index + pair).to(tl.int32)
    if expert < E:
        w = tl.load(pair_weight + pair).to(tl.float32)
        row = x + (pair // K).to(tl.int64) * x_row
        column = tl.program_id(1) * BN + tl.arange(0, BN)
        inside = column < I
        matrix0 = weight0 + expert.to(tl.int64) * expert0
        matrix1 = weight1 + expert.to(tl.int64) * expert1
        if STREAMS == 3:
            n = (tl.program_id(1) * 2 * BN + tl.arange(0, 2 * BN)) % (2 * I)
            both = _products(
                row, matrix0, n, inner0, column0, H, 2 * BN, BK, PROLOGUE,
                w, expert, prologue_vectors, DOT,
            )  # fmt: skip
            even, odd = tl.split(tl.reshape(both, (BN, 2)))
            if ODD_FIRST:
                r = MIDDLE(odd, even, w, expert, column, inside, middle_vectors)
            else:
                r = MIDDLE(even, odd, w, expert, column, inside, middle_vectors)
        else:
            s0 = _products(
                row, matrix0, column % I, inner0, column0, H, BN, BK, PROLOGUE,
                w, expert, prologue_vectors, DOT,
            )  # fmt: skip
            if STREAMS == 2:
                s1 = _products(
                    row, matrix1, column % I, inner1, column1, H, BN, BK, PROLOGUE,
                    w, expert, prologue_vectors, DOT,
                )  # fmt: skip
                r = MIDDLE(s0, s1, w, expert, column, inside, middle_vectors)
            else:
                r = MIDDLE(s0, w, expert, column, inside, middle_vectors)
        tl.store(h + pair.to(tl.int64) * I + column, r.to(h.dtype.element_ty), inside)


@triton.jit
def decode_down(
    h, weight, out, pair_weight, index,
    expert_stride, column_stride, inner_stride, tail_vectors,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
    TAIL: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write BN columns of out[t]: the sum over the token's kept pairs stays in registers."""
    t = tl.program_id(0)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = column < H
    total = tl.zeros((BN,), tl.float32)
    for k in range(0, K):
        pair = t * K + k
        expert = tl.load(index + pair).to(tl.int32)
        if expert < E:
            w = tl.load(pair_weight + pair).to(tl.float32)
            row = h + pair.to(tl.int64) * I
            matrix = weight + expert.to(tl.int64) * expert_stride
            acc = _products(
                row, matrix, column % H, inner_stride, column_stride, I, BN, BK, None,
                w, expert, (), DOT,
            )  # fmt: skip
            total += TAIL(acc, w, expert, column, inside, tail_vectors)
    tl.store(out + t.to(tl.int64) * H + column, total.to(out.dtype.element_ty), inside)
