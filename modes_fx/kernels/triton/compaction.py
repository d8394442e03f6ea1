"""Launch the gate, and the sort of kept pairs by expert.

T tokens, K experts per token, E experts; P = T * K pairs, kept or not; a slot is the place of a
kept pair in the order of experts.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from modes_fx.kernels.triton import routing
from modes_fx.kernels.triton.calls import launch
from modes_fx.kernels.triton.limits import DeviceLimitError

PAIRS_OF_ONE_PROGRAM = 2048
"""Up to so many pairs, one program sorts faster than three launches do."""
PAIRS_OF_A_BLOCK = 1024
MAX_EXPERTS = 1024
MAX_TOP_K = 64
_ELEMENTS_AT_ONCE = 8192  # of the [pairs, experts] comparison that ranks pairs
_GATE_PAIRS = 1024


@dataclass(frozen=True)
class Gate:
    """What the gate reads beside the choice; see ``modes_fx.kernels.reference.gate``.

    Attributes:
        modality: ``[>= T]`` int8.
        tokens: ``[1]`` int64, how many tokens have a modality; None where it is certain.
        theta: ``[M]`` float32.
        share: ``renormalised`` or ``weight``.
        kept_mass_exponent: beta.
        min_k: how many pairs of a token are kept at least.
    """

    modality: Tensor
    tokens: Tensor | None
    theta: Tensor
    share: str
    kept_mass_exponent: float
    min_k: int

    def __post_init__(self) -> None:
        """Refuse a share that the kernels do not know."""
        if self.share not in ("renormalised", "weight"):
            raise ValueError(f"share must be 'renormalised' or 'weight', got {self.share!r}")

    @property
    def options(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "RENORMALISED": self.share == "renormalised",
            "REWEIGHTED": self.kept_mass_exponent != 0,
            "MIN_K": self.min_k,
        }


NO_GATE = {"RENORMALISED": False, "REWEIGHTED": False, "MIN_K": 0}


@dataclass(frozen=True)
class Slots:
    """The kept pairs in the order of their expert, all on the device.

    Attributes:
        slot_pair: ``[P]`` int32, the pair in each used slot; the rest is not written.
        pair_slot: ``[P]`` int32, the slot of each pair; -1 for skipped ones.
        expert_start: ``[E + 1]`` int32, the first slot of each expert.
        tile_start: ``[E + 1]`` int32, the same for tiles of ``block_m`` slots.
    """

    slot_pair: Tensor
    pair_slot: Tensor
    expert_start: Tensor
    tile_start: Tensor


def gate(index: Tensor, weight: Tensor, num_experts: int, gate: Gate) -> tuple[Tensor, Tensor]:
    """Decide which pairs are computed, in one launch; see ``modes_fx.kernels.reference.gate``."""
    T, K = index.shape
    kept_index = index.new_empty(T, K)
    kept_weight = weight.new_empty(T, K)
    if index.numel() == 0:
        return kept_index, kept_weight
    K_P2 = triton.next_power_of_2(K)
    BT = max(_GATE_PAIRS // K_P2, 1)
    launch(
        routing.gate_tokens, (triton.cdiv(T, BT),),
        index, weight, gate.modality, gate.tokens, gate.theta, kept_index, kept_weight,
        T, gate.kept_mass_exponent, *index.stride(), *weight.stride(),
        num_experts, K, K_P2, BT, **gate.options, num_warps=4, debug=gate.tokens is not None,
    )  # fmt: skip
    return kept_index, kept_weight


def compact(index: Tensor, num_experts: int, block_m: int) -> Slots:
    """Sort the kept pairs by expert: one launch up to 2048 pairs, two above.

    Args:
        index: ``[T, K]`` integer, contiguous; ids >= ``num_experts`` are skipped.
        num_experts: E.
        block_m: how many slots a tile has.

    Raises:
        DeviceLimitError: there are too many experts for the comparison that ranks pairs.
    """
    return _sort(index, None, None, num_experts, block_m)[0]


def gate_and_compact(
    index: Tensor, weight: Tensor, num_experts: int, gate: Gate, block_m: int
) -> tuple[Slots, Tensor, Tensor]:
    """Do what :func:`gate` and then :func:`compact` do, in the launches of the latter."""
    return _sort(index, weight, gate, num_experts, block_m)


def blocks_of(tokens: int, top_k: int, num_experts: int) -> tuple[int, int]:
    """Return how often a block takes tokens, and how many blocks there are, above 2048 pairs."""
    at_once = _tokens_at_once(top_k, num_experts)
    steps = max(PAIRS_OF_A_BLOCK // (at_once * triton.next_power_of_2(top_k)), 1)
    return steps, triton.cdiv(tokens, at_once * steps)


def padded_experts(num_experts: int) -> int:
    """Return how many experts the kernels count at once: a power of two, and not too few."""
    return max(triton.next_power_of_2(num_experts), 16)


def _tokens_at_once(top_k: int, num_experts: int) -> int:
    pairs = min(_ELEMENTS_AT_ONCE // padded_experts(num_experts), 256)
    return max(pairs // triton.next_power_of_2(top_k), 1)


def _sort(
    index: Tensor, weight: Tensor | None, gate: Gate | None, num_experts: int, block_m: int
) -> tuple[Slots, Tensor, Tensor]:
    T, K = index.shape
    if num_experts > MAX_EXPERTS or K > MAX_TOP_K:
        raise DeviceLimitError(
            f"{num_experts} experts, {K} of them a token: the kernels sort up to {MAX_EXPERTS} "
            f"and {MAX_TOP_K}"
        )
    E_P2, K_P2 = padded_experts(num_experts), triton.next_power_of_2(K)
    BT = _tokens_at_once(K, num_experts)
    slots = Slots(
        *(index.new_empty(T * K, dtype=torch.int32) for _ in range(2)),
        *(index.new_empty(num_experts + 1, dtype=torch.int32) for _ in range(2)),
    )
    outputs = (slots.slot_pair, slots.pair_slot, slots.expert_start, slots.tile_start)
    kept_index, kept_weight = index, index
    read: tuple[Any, ...] = (index, None, None, None, None, None, None)
    strides: tuple[int, ...] = (0, 0, 0, 0)
    options: dict[str, Any] = {"GATED": False, **NO_GATE}
    beta = 0.0
    if gate is not None:
        assert weight is not None
        kept_index, kept_weight = index.new_empty(T, K), weight.new_empty(T, K)
        read = (index, weight, gate.modality, gate.tokens, gate.theta, kept_index, kept_weight)
        strides = (*index.stride(), *weight.stride())
        options = {"GATED": True, **gate.options}
        beta = gate.kept_mass_exponent
    debug = gate is not None and gate.tokens is not None
    if T * K <= PAIRS_OF_ONE_PROGRAM:
        launch(
        routing.sort_pairs, (1,),
            *read, *outputs, T, beta, *strides,
            num_experts, E_P2, K, K_P2, BT, block_m, **options, num_warps=16, debug=debug,
        )  # fmt: skip
        return slots, kept_index, kept_weight
    steps, blocks = blocks_of(T, K, num_experts)
    counts = index.new_empty(blocks, E_P2, dtype=torch.int32)
    launch(
        routing.count_blocks, (blocks,),
        *read, counts, T, beta, *strides,
        num_experts, E_P2, K, K_P2, BT, steps, **options, num_warps=4, debug=debug,
    )  # fmt: skip
    rows = max(_ELEMENTS_AT_ONCE // 4 // E_P2, 1)
    launch(
        routing.place_blocks, (blocks,),
        kept_index, counts, *outputs, T, blocks,
        num_experts, E_P2, K, K_P2, BT, steps, block_m, rows, num_warps=8,
    )  # fmt: skip
    return slots, kept_index, kept_weight
