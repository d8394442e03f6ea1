"""Follow the indexing where a block runs its experts on a part of the call's tokens.

A block that has experts of its own for each modality picks their rows, ``x[mask]``, and the tokens
of the call are known only before that. The same picking, done to their modality codes, gives the
code of each row that the experts see.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.region import NoMatchError
from modes_fx.passes.sizes import is_known

aten = torch.ops.aten
CODES_OF_ROWS = torch.ops.modes_fx.codes_of_rows.default

PICKS = frozenset({aten.index.Tensor, aten.index_select.default, aten.slice.Tensor})
"""Ops that pick rows, in an order of their own."""

KEEP_ROWS_EQUAL = frozenset(
    {aten.bitwise_not.default, aten.logical_not.default, aten._to_copy.default, aten.clone.default}
)


@dataclass(frozen=True)
class Origin:
    """Where the rows that experts see come from.

    Attributes:
        rows: ``[.., H]``, one row a token of the call.
        picks: what picks the experts' rows from them, in the order in which it is done.
    """

    rows: Node
    picks: tuple[Node, ...]

    @property
    def tokens(self) -> int | None:
        """How many tokens there are before any is picked; None where that depends on data."""
        sizes = self.rows.meta["val"].shape[:-1]
        return prod((g.shape(self.rows) or ())[:-1]) if all(map(is_known, sizes)) else None


def origin_of(x: Node) -> Origin:
    """Follow the rows ``x`` ``[T, H]`` of a region back through the picking of rows.

    Raises:
        NoMatchError: rows are picked, but not whole ones.
    """
    picks: list[Node] = []
    rows: Any = x
    while (source := _behind(rows)).target in PICKS:
        picks.insert(0, source)
        rows = source.args[0]
    for pick in picks:
        _check_pick(pick, hidden=(g.shape(x) or (0,))[-1], first=pick is picks[0])
    return Origin(rows, tuple(picks))


def pick_codes(graph: Graph, origin: Origin, modality: Node, tokens: Node) -> Node:
    """Write into a graph the modality code of every row that was picked; return that node."""
    codes = graph.call_function(CODES_OF_ROWS, (modality, tokens, origin.rows))
    for pick in origin.picks:
        how: list[Any] = list(pick.args[1:])
        if pick.target is aten.index.Tensor:
            if _is_mask_of_rows(pick):
                how[0] = [graph.call_function(aten.select.int, (*how[0], -1, 0))]
        elif how:
            how[0] = _dimension(pick)
        target: Any = pick.target
        picked = graph.call_function(target, (codes, *how), dict(pick.kwargs))
        codes = graph.call_function(aten.reshape.default, (picked, [-1]))
    return codes


def _behind(node: Any) -> Node:
    node = g.through_views(node)
    return g.through_views(node.args[0]) if node.target is g.MARKER else node


def _check_pick(pick: Node, hidden: int, first: bool) -> None:
    dimensions = _source_shape(pick)
    if dimensions[-1] != hidden or not (first or len(dimensions) == 2):
        raise NoMatchError("its experts see rows that were picked in parts", pick)
    if pick.target is aten.index.Tensor:
        whole = _indexed_dimensions(pick) < len(dimensions) or _is_mask_of_rows(pick)
    else:
        whole = _dimension(pick) < len(dimensions) - 1
    if not whole:
        raise NoMatchError("its experts see picked values, not whole rows", pick)


def _source_shape(pick: Node) -> tuple[int, ...]:
    source: Any = pick.args[0]
    return g.shape(source) or ()


def _dimension(pick: Node) -> int:
    dim: Any = pick.args[1] if len(pick.args) > 1 else 0
    return int(dim) % len(_source_shape(pick))


def _indexed_dimensions(pick: Node) -> int:
    indices: Any = pick.args[1]
    return sum(1 if index is None else _dimensions_of(index) for index in indices)


def _dimensions_of(index: Node) -> int:
    is_mask = g.dtype(index) in (torch.bool, torch.uint8)
    return len(g.shape(index) or ()) if is_mask else 1


def _is_mask_of_rows(pick: Node) -> bool:
    """Return whether the index is one mask ``[.., H]`` that is the same for all of H."""
    indices: Any = pick.args[1]
    node = indices[0]
    if len(indices) != 1 or _dimensions_of(node) != len(_source_shape(pick)):
        return False
    while node.target in KEEP_ROWS_EQUAL:
        node = node.all_input_nodes[0]
    if node.target is not aten.expand.default:
        return False
    return (g.shape(node.all_input_nodes[0]) or ())[-1:] == (1,)
