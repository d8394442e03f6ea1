"""Rows that a mask picks, written so that no shape depends on data.

Vision features take the place of the embeddings of image tokens, or are added to their hidden
states: ``h[mask] = v``, as ``masked_scatter``, and ``h[mask] += v``. How many rows ``h[mask]`` has
is only known at run time, which most runtimes of exported graphs cannot do; each token can look its
own row of ``v`` up instead.
"""

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

aten = torch.ops.aten


def spread_masked_rows(program: ExportedProgram) -> int:
    """Replace every ``h[mask] = v`` and ``h[mask] += v`` of a functional program.

    Args:
        program: changed in place. Masks of ``[B, S]``, or of ``[B, S, 1]``, are replaced.

    Returns:
        How many there were.
    """
    found = 0
    for node in list(program.graph.nodes):
        if parts := _masked_add(node):
            picked, values = parts
            h, (mask,), _ = node.args
            _write(node, h, mask, values, add=True)
            _erase_with_users(picked)
        elif parts := _masked_put(node):
            _write(node, node.args[0], *parts, add=False)
        else:
            continue
        found += 1
    program.graph_module.recompile()
    return found


def _masked_put(put: Node) -> tuple[Node, Node] | None:
    """Return the ``[B, S]`` mask and the values where a node puts them in whole rows."""
    if put.target is not aten.masked_scatter.default:
        return None
    arguments: Any = put.args
    h, spread, values = arguments
    while spread.target in (aten.expand.default, aten._to_copy.default, aten.clone.default):
        spread = spread.args[0]
    if spread.target is not aten.unsqueeze.default or spread.args[1] not in (-1, 2):
        return None
    mask, width = spread.args[0], h.meta["val"].shape[-1]
    whole = mask.meta["val"].dim() == 2 and mask.meta["val"].dtype == torch.bool
    return (mask, values) if whole and values.meta["val"].shape[-1] == width else None


def _masked_add(put: Node) -> tuple[Node, Node] | None:
    """Return ``h[mask]`` and ``v`` where a node writes their sum back to where it is from."""
    if put.target is not aten.index_put.default or len(put.args) != 3:
        return None
    arguments: Any = put.args
    h, where, added = arguments
    if not (isinstance(added, Node) and added.target is aten.add.Tensor and not added.kwargs):
        return None
    if len(where) != 1 or where[0] is None or len(added.users) != 1:
        return None
    mask = where[0].meta["val"]
    if mask.dtype != torch.bool or mask.dim() != 2:
        return None
    operands: Any = added.args
    for picked, values in (operands, operands[::-1]):
        if not (isinstance(picked, Node) and isinstance(values, Node)):
            continue
        if picked.target is aten.index.Tensor and picked.args == (h, where):
            return picked, values
    return None


def _write(put: Node, h: Any, mask: Node, values: Node, *, add: bool) -> None:
    graph, fake = put.graph, mask.meta["val"].fake_mode
    width = values.meta["val"].shape[-1]

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        node = graph.call_function(target, args, kwargs)
        given = map_arg(args, lambda arg: arg.meta["val"])
        with fake:
            node.meta["val"] = target(*given, **kwargs)
        return node

    with graph.inserting_before(put):
        counted = call(aten._to_copy.default, mask, dtype=torch.int64)
        within = call(aten.cumsum.default, counted, 1)
        of_sequence = call(aten.sum.dim_IntList, counted, [1], True)
        before = call(aten.sub.Tensor, call(aten.cumsum.default, of_sequence, 0), of_sequence)
        row = call(aten.sub.Tensor, call(aten.add.Tensor, within, before), 1)
        row = call(aten.clamp_min.default, row, 0)
        if values.meta["val"].dim() != 2:
            values = call(aten.reshape.default, values, [-1, width])
        # One row more, so that there is one to look up where the mask picks none.
        none = call(aten.new_zeros.default, values, [1, width])
        looked_up = call(aten.embedding.default, call(aten.cat.default, [values, none]), row)
        wanted = call(aten.unsqueeze.default, mask, 2)
        if add:
            added = call(aten.where.ScalarOther, wanted, looked_up, 0.0)
            result = call(aten.add.Tensor, h, added)
        else:
            result = call(aten.where.self, wanted, looked_up, h)
    put.replace_all_uses_with(result)
    graph.erase_node(put)


def _erase_with_users(node: Node) -> None:
    """Erase a node and the assertions on its size, which are all that reads it."""
    for user in list(node.users):
        _erase_with_users(user)
    assert node.target is not operator.getitem
    node.graph.erase_node(node)
