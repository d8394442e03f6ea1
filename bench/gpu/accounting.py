"""What a routing costs: launches, tiles, padded rows and bytes, for three ways to run the experts.

Bytes are those that must cross between a kernel and memory when every kernel reads each number it
needs once and nothing survives from one kernel to the next. For a routing this is exact, the same
rule for all, and a lower bound of what a device moves. Counting starts at the router's choice.

T tokens, K experts per token, E experts, H hidden, I intermediate size; P = T * K pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from modes_fx.bench.gpu.shapes import Layer
from modes_fx.kernels.triton.compaction import (
    PAIRS_OF_ONE_PROGRAM,
    blocks_of,
    padded_experts,
)
from modes_fx.kernels.triton.launch import DECODE_TOKENS

INDEX_BYTES = 8
SLOT_BYTES = 4


@dataclass(frozen=True)
class Routing:
    """The sizes of one routing that costs depend on.

    Attributes:
        tokens: T.
        pairs: P.
        kept: how many pairs are computed.
        rows: how many tokens keep a pair.
        counts: kept pairs by expert.
    """

    tokens: int
    pairs: int
    kept: int
    rows: int
    counts: tuple[int, ...]

    @staticmethod
    def of(index: Tensor, experts: int) -> "Routing":
        """Count a choice ``[T, K]`` in which skipped pairs have ids >= ``experts``."""
        is_kept = index < experts
        counts = index[is_kept].bincount(minlength=experts)
        return Routing(
            len(index),
            index.numel(),
            int(is_kept.sum()),
            int(is_kept.any(-1).sum()),
            tuple(counts.tolist()),
        )

    @property
    def hit(self) -> int:
        """How many experts have a pair."""
        return sum(count > 0 for count in self.counts)

    def tiles(self, block_m: int) -> int:
        """How many tiles of ``block_m`` rows hold the kept pairs."""
        return sum(-(-count // block_m) for count in self.counts)


@dataclass(frozen=True)
class Work:
    """What one layer costs.

    Attributes:
        launches: kernels, from the gate on; where libraries launch more for one operation, one.
        tiles: row tiles of each GEMM, including those that only write zeros; 0 where not known.
        padded_rows: rows of these tiles that hold no kept pair.
        weight_bytes: read from weights.
        read_bytes: read otherwise.
        written_bytes: written.
    """

    launches: int
    tiles: int
    padded_rows: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


Count = Callable[[Layer, Routing, int, int], Work]
"""(layer, routing, rows of a tile, bytes of a number) -> its work."""


def weight_bytes(layer: Layer, routing: Routing, size: int) -> int:
    """Return the bytes of the matrices of all experts that have a pair."""
    return routing.hit * (layer.streams + 1) * layer.hidden * layer.intermediate * size


def count_modes(layer: Layer, routing: Routing, block_m: int, size: int) -> Work:
    """Count our kernels, gate and sort in the same launches; see ``modes_fx.kernels.triton``."""
    H, width, kept, P = layer.hidden, layer.intermediate, routing.kept, routing.pairs
    choice = P * (INDEX_BYTES + size)
    is_decode = routing.tokens <= DECODE_TOKENS
    gate_read = choice + routing.tokens  # a code for each token
    up_read = (routing.rows * H + kept) * size
    down_read = (kept * width + kept) * size
    out = routing.tokens * H * size
    if is_decode:
        return Work(
            launches=3,
            tiles=kept,
            padded_rows=0,
            weight_bytes=weight_bytes(layer, routing, size),
            read_bytes=gate_read + 2 * P * INDEX_BYTES + up_read + down_read,
            written_bytes=choice + kept * width * size + out,
        )
    one = P <= PAIRS_OF_ONE_PROGRAM
    starts = 2 * (layer.experts + 1) * SLOT_BYTES
    _, blocks = blocks_of(routing.tokens, layer.top_k, layer.experts)
    counts = 0 if one else blocks * padded_experts(layer.experts) * SLOT_BYTES
    sort_read = 0 if one else P * INDEX_BYTES + counts
    slots = (kept + P) * SLOT_BYTES
    tiles = routing.tiles(block_m)
    return Work(
        launches=4 if one else 5,
        tiles=tiles,
        padded_rows=tiles * block_m - kept,
        weight_bytes=weight_bytes(layer, routing, size),
        read_bytes=gate_read
        + sort_read
        + up_read
        + down_read
        + kept * H * size
        + 2 * (kept * SLOT_BYTES + starts)
        + P * SLOT_BYTES,
        written_bytes=choice + counts + slots + starts + kept * (width + H) * size + out,
    )


def count_padded_blocks(layer: Layer, routing: Routing, block_m: int, size: int) -> Work:
    """Count the scheme of vLLM's fused_moe, given the same gate.

    Pairs are padded to whole tiles for each expert. Skipped pairs make up tiles of their own, which
    write zeros in both GEMMs; the activation and the sum over each token see them as rows.
    """
    H, width, kept, P = layer.hidden, layer.intermediate, routing.kept, routing.pairs
    choice = P * (INDEX_BYTES + size)
    up = layer.streams * width
    zero_tiles = -(-(P - kept) // block_m)
    tiles = routing.tiles(block_m)
    sorted_ids = (tiles + zero_tiles) * (block_m + 1) * SLOT_BYTES
    return Work(
        launches=7 if P > PAIRS_OF_ONE_PROGRAM else 6,
        tiles=tiles + zero_tiles,
        padded_rows=tiles * block_m - kept,
        weight_bytes=weight_bytes(layer, routing, size),
        read_bytes=choice
        + routing.tokens
        + P * INDEX_BYTES
        + 2 * sorted_ids
        + routing.rows * H * size
        + P * up * size
        + (kept * width + kept) * size
        + P * H * size,
        written_bytes=choice
        + sorted_ids
        + (P * up + P * width + P * H) * size
        + routing.tokens * H * size,
    )


def count_grouped_mm(layer: Layer, routing: Routing, block_m: int, size: int) -> Work:
    """Count transformers' grouped_mm experts, given the same gate and compiled as well as can be.

    Every element-wise step between two GEMMs is one kernel. Rows are gathered, activated and summed
    for all pairs, because only that number is known on the host; the GEMMs leave out skipped ones.
    """
    del block_m  # the library chooses its own tiles and does not tell
    H, width, kept, P = layer.hidden, layer.intermediate, routing.kept, routing.pairs
    choice = P * (INDEX_BYTES + size)
    up = layer.streams * width
    offsets = layer.experts * SLOT_BYTES
    return Work(
        launches=10,  # gate, sort, gather, histogram, scan, GEMM, body, GEMM, inverse, sum
        tiles=0,
        padded_rows=0,
        weight_bytes=weight_bytes(layer, routing, size),
        read_bytes=choice
        + routing.tokens
        + P * INDEX_BYTES
        + (P * INDEX_BYTES + routing.tokens * H * size)
        + P * INDEX_BYTES
        + 3 * offsets
        + kept * H * size
        + P * up * size
        + kept * width * size
        + P * INDEX_BYTES
        + (P * (INDEX_BYTES + size) + P * H * size),
        written_bytes=choice
        + 2 * P * INDEX_BYTES
        + P * H * size
        + 2 * offsets
        + kept * up * size
        + P * width * size
        + kept * H * size
        + P * INDEX_BYTES
        + routing.tokens * H * size,
    )


SCHEMES: dict[str, Count] = {
    "modes": count_modes,
    "vLLM padded blocks": count_padded_blocks,
    "torch grouped_mm": count_grouped_mm,
}


def flops(layer: Layer, routing: Routing) -> int:
    """Return the floating-point operations of the kept pairs' GEMMs."""
    return 2 * routing.kept * (layer.streams + 1) * layer.hidden * layer.intermediate


def names() -> list[str]:
    """Return the columns of a table of work."""
    return [field.name for field in fields(Work)]
