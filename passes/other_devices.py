"""Experts that are spread over devices: each runs its own, and their sums are added up afterwards.

Such a model masks the choice before the experts see it: a pair of another device's expert gets the
sentinel E and weight 0. A share taken after that would be one of this device's weights alone, and
devices would disagree about it; so the gate acts on the choice before the mask.
"""

from dataclasses import dataclass

import torch
from torch.fx import Node

from modes_fx.passes import graph as g
from modes_fx.passes.region import NoMatchError, Region

aten = torch.ops.aten

MASKS = frozenset(
    {aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarSelf}
)


@dataclass(frozen=True)
class Choice:
    """A region's choice of experts, before pairs of other devices' experts were masked.

    Attributes:
        index: ``[T, K]``.
        weight: ``[T, K]``.
        elsewhere: ``[T, K]`` bool, which pairs other devices compute; None where there are none.
    """

    index: Node
    weight: Node
    elsewhere: Node | None


def whole_choice(region: Region) -> Choice:
    """Return what the gate of a region compares.

    Raises:
        NoMatchError: the choice is masked, but not in a way that shows what it was before.
    """
    index, weight = g.through_views(region.index), g.through_views(region.weight)
    masked = index.target in (aten.where.self, aten.where.ScalarSelf)
    if masked and _is_number(index.args[1], region.num_experts):
        elsewhere, _, inside = index.args
        if _is_zeroed(weight, elsewhere):
            return Choice(inside, weight.args[0], elsewhere)  # type: ignore[arg-type]
    elif not (weight.target in MASKS and _is_summed_over_devices(region.out)):
        return Choice(region.index, region.weight, None)
    raise NoMatchError(
        "its choice of experts is masked as for experts that are spread over devices, and the "
        "weights before the mask were not found, so a share would be one of this device's alone",
        index,
    )


def is_sentinel_mask(node: Node, num_experts: int) -> bool:
    """Return whether a node sets the rows of pairs that other devices compute to 0."""
    if node.target is not aten.masked_fill.Scalar or node.args[2] != 0:
        return False
    mask = g.through_views(node.args[1])  # type: ignore[arg-type]
    return mask.target is aten.ge.Scalar and bool(mask.args[1] == num_experts)


def _is_zeroed(weight: Node, mask: object) -> bool:
    return weight.target is aten.masked_fill.Scalar and weight.args[1:] == (mask, 0.0)


def _is_number(value: object, number: int) -> bool:
    if isinstance(value, Node) and value.target in (aten.scalar_tensor.default, aten.full.default):
        value = value.args[-1]
    return isinstance(value, int) and value == number


def _is_summed_over_devices(out: Node) -> bool:
    return any("c10d" in str(node.target) for node in g.descendants([out]))
