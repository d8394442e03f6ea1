"""Additions to the rows that a mask picks, written so that no shape depends on data.

Vision features are added to the hidden states of image tokens as ``h[mask] += v``. How many rows
``h[mask]`` has is only known at run time, which most runtimes of exported graphs cannot do; each
token can look its own row of ``v`` up instead.
"""

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


def spread_masked_adds(program: ExportedProgram) -> int:
    """Replace every ``h[mask] += v`` of a functional program, with a ``[B, S]`` mask.

    Args:
        program: changed in place.

    Returns:
        How many there were.
    """
    found = 0
    for put in list(program.graph.nodes):
        parts = _masked_add(put)
        if parts is None:
            continue
        picked, values = parts
        _write(put, values)
        _erase_with_users(picked)
        found += 1
    program.graph_module.recompile()
    return found


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


def _write(put: Node, values: Node) -> None:
    arguments: Any = put.args
    h, (mask,), _ = arguments
    graph, fake = put.graph, mask.meta["val"].fake_mode

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        node = graph.call_function(target, args, kwargs)
        given = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
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
        # One row more, so that there is one to look up where the mask picks none.
        table = call(aten.constant_pad_nd.default, values, [0, 0, 0, 1], 0.0)
        looked_up = call(aten.embedding.default, table, row)
        wanted = call(aten.unsqueeze.default, mask, 2)
        total = call(aten.add.Tensor, h, call(aten.where.ScalarOther, wanted, looked_up, 0.0))
    put.replace_all_uses_with(total)
    graph.erase_node(put)


def _erase_with_users(node: Node) -> None:
    """Erase a node and the assertions on its size, which are all that reads it."""
    for user in list(node.users):
        _erase_with_users(user)
    assert node.target is not operator.getitem
    node.graph.erase_node(node)
