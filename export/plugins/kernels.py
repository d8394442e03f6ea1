"""The kernels of single tokens as plugins call them: tensors in, one tensor out, sizes compiled in.

A plugin's kernel is launched with pointers alone, its inputs and then its output, all of them
contiguous. T tokens, K experts per token, E experts, H hidden size, I intermediate size.
"""

import triton
import triton.language as tl

from modes_fx.kernels.triton.decode import decode_down, decode_up


@triton.jit
def plugin_up(
    x, pair_weight, index, matrices, prologue_vectors, middle_vectors, h,
    FIRST: tl.constexpr, SECOND: tl.constexpr, SECOND_MATRIX: tl.constexpr,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
    PROLOGUE: tl.constexpr, MIDDLE: tl.constexpr, STREAMS: tl.constexpr, ODD_FIRST: tl.constexpr,
    DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """See ``decode_up``; FIRST and SECOND are where a matrix begins, and its three strides."""
    decode_up(
        x, matrices[0] + FIRST[0], matrices[SECOND_MATRIX] + SECOND[0], h, pair_weight, index,
        H, FIRST[1], FIRST[2], FIRST[3], SECOND[1], SECOND[2], SECOND[3],
        prologue_vectors, middle_vectors,
        H, I, E, K, PROLOGUE, MIDDLE, STREAMS, ODD_FIRST, DOT, BN, BK,
    )  # fmt: skip


@triton.jit
def plugin_down(
    h, pair_weight, index, matrices, tail_vectors, out, MATRIX: tl.constexpr,
    H: tl.constexpr, I: tl.constexpr, E: tl.constexpr, K: tl.constexpr,
    TAIL: tl.constexpr, DOT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """See ``decode_down``; MATRIX is where the matrix begins, and its three strides."""
    decode_down(
        h, matrices[0] + MATRIX[0], out, pair_weight, index, MATRIX[1], MATRIX[2], MATRIX[3],
        tail_vectors, H, I, E, K, TAIL, DOT, BN, BK,
    )  # fmt: skip
