"""The ways to compute a layer's experts that are timed against each other, by name.

Another one is added with :func:`register`; the bench knows nothing of it but what is said there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from modes_fx.bench.layer import int8, onnx_runtime, open_vino, ours
from modes_fx.bench.layer.calls import Call
from modes_fx.bench.layer.weights import Layer, Layout, NotAvailableError, Runner

Skipping = Literal["none", "zeroed", "gated"]
"""What becomes of skipped pairs: there is no way to skip (timed at skip 0 only), they are computed
with a weight of zero (timed where something is skipped), or they are left out."""

OURS, OURS_INT8 = "ours", "ours_int8"
COPIED_AT_MOST = 2 * 10**9
"""Bytes of weights that batched_mm may copy in one call: it takes every pair's own."""


def as_it_is(layer: Layer) -> Layer:
    """Return the layer: what an implementation computes that changes no weights."""
    return layer


@dataclass(frozen=True)
class Implementation:
    """One way to compute the experts.

    Attributes:
        name: as the command line and the rows spell it.
        description: what runs, in a few words.
        prepare: makes what is called with each :class:`Call`; raises :class:`NotAvailableError`
            with the reason where it cannot run here.
        skipping: what it does with skipped pairs.
        layouts: of the weights that it can be given.
        left_out: says why it is not timed at a number of tokens, or None where it is.
        optional: whether it needs another library; such are timed only when named.
        truth: the layer whose outputs are the right ones; of another where weights are changed.
        weight_bytes: of a weight, where that is not the dtype's.
    """

    name: str
    description: str
    prepare: Callable[[Layer, Layout], Runner]
    skipping: Skipping
    layouts: Sequence[Layout] = ("default",)
    left_out: Callable[[Layer, int], str | None] = lambda layer, tokens: None
    optional: bool = False
    truth: Callable[[Layer], Layer] = as_it_is
    weight_bytes: int | None = None

    def runs_at(self, skip: float) -> bool:
        """Return whether there is something of its own to time at a skip ratio."""
        return {"none": skip == 0, "zeroed": skip > 0, "gated": True}[self.skipping]


IMPLEMENTATIONS: dict[str, Implementation] = {}
"""By name, in the order in which they are shown."""


def register(implementation: Implementation) -> Implementation:
    """Add an implementation, or replace the one of that name."""
    IMPLEMENTATIONS[implementation.name] = implementation
    return implementation


def find_implementations(names: Sequence[str]) -> list[Implementation]:
    """Return implementations by name.

    Raises:
        ValueError: there is none of a name; lists those there are.
    """
    if unknown := [name for name in names if name not in IMPLEMENTATIONS]:
        raise ValueError(
            f"there is no implementation {', '.join(unknown)}; "
            f"there are {', '.join(IMPLEMENTATIONS)}"
        )
    return [IMPLEMENTATIONS[name] for name in dict.fromkeys(names)]


def _eager(module: nn.Module, call: Call, weight: Tensor) -> Tensor:
    out: Tensor = module(call.x, call.index, weight)
    return out


def _hf_eager(layer: Layer, layout: Layout) -> Runner:
    return lambda call: _eager(layer.copies[call.copy], call, call.weight)


def _hf_zeroed(layer: Layer, layout: Layout) -> Runner:
    return lambda call: _eager(layer.copies[call.copy], call, call.kept_weight)


def _hf_grouped(layer: Layer, layout: Layout) -> Runner:
    grouped: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    return lambda call: grouped(layer.copies[call.copy], call.x, call.index, call.weight)


def _hf_batched_compiled(layer: Layer, layout: Layout) -> Runner:
    batched: Any = torch.compile(ALL_EXPERTS_FUNCTIONS["batched_mm"], dynamic=False, fullgraph=True)
    return lambda call: batched(layer.copies[call.copy], call.x, call.index, call.weight)


def _batched_copies(layer: Layer, tokens: int) -> str | None:
    pairs = tokens * layer.shape.top_k
    copied = pairs * layer.shape.expert_parameters * layer.dtype.itemsize
    if copied <= COPIED_AT_MOST:
        return None
    return f"it takes the weights of each of the {pairs} pairs, {copied / 1e9:.1f} GB"


for _implementation in (
    Implementation(
        OURS,
        "torch.ops.modes_fx.gate and .experts, as a rewritten graph calls them",
        ours.prepare,
        "gated",
        layouts=("default", "prepacked"),
    ),
    Implementation(
        OURS_INT8,
        "as ours, with the experts' weights quantised to int8",
        int8.prepare,
        "gated",
        optional=True,
        truth=int8.dequantised,
        weight_bytes=int8.BYTES_OF_A_WEIGHT,
    ),
    Implementation("hf_eager", "transformers, loop over experts", _hf_eager, "none"),
    Implementation("hf_grouped", "transformers, grouped_mm", _hf_grouped, "none"),
    Implementation(
        "hf_batched_compiled",
        "transformers, batched_mm through torch.compile",
        _hf_batched_compiled,
        "none",
        left_out=_batched_copies,
    ),
    Implementation(
        "hf_zeroed",
        "transformers, loop over experts, skipped pairs with a weight of zero",
        _hf_zeroed,
        "zeroed",
    ),
    Implementation(
        "openvino",
        "OpenVINO, experts fused into GatherMatmul",
        open_vino.prepare,
        "none",
        optional=True,
    ),
    Implementation(
        "onnxruntime",
        "ONNX Runtime, com.microsoft.MoE, in float32",
        onnx_runtime.prepare,
        "none",
        optional=True,
    ),
):
    register(_implementation)

DEFAULT_BASELINES = tuple(
    name for name, one in IMPLEMENTATIONS.items() if name != OURS and not one.optional
)

__all__ = [
    "DEFAULT_BASELINES",
    "IMPLEMENTATIONS",
    "Implementation",
    "NotAvailableError",
    "find_implementations",
    "register",
]
