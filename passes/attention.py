"""Let the query heads that share keys and values read them once, when one token is decoded.

A model with fewer key heads than query heads repeats its keys and values for PyTorch's attention,
which for one token costs far more than the attention: both are copied as a whole. The heads of a
group can as well be several queries of one head, because a single token has no order among them.
What is computed is the same; only sums may be rounded in another order.
"""

from collections.abc import Sequence
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from modes_fx.passes import graph as g

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu.default


class Repeated(NamedTuple):
    """Keys or values of G heads, repeated N times: ``[B, G, N, S, D]`` seen as ``[B, GN, S, D]``.

    Attributes:
        once: ``[B, G, 1, S, D]``, before they are repeated.
        sizes: B, G, N, S and D, as numbers or nodes.
        heads: GN, as a number or node.
    """

    once: Node
    sizes: Sequence[Any]
    heads: Any


def share_keys(graph: Graph) -> int:
    """Rewrite the attention of single tokens whose keys and values are repeated for it.

    Args:
        graph: a functional ATen graph; changed in place, dead nodes stay.

    Returns:
        How many attentions were rewritten.
    """
    return sum(_share(graph, node) for node in list(graph.nodes) if node.target is ATTENTION)


def _share(graph: Graph, attention: Node) -> bool:
    if len(attention.args) != 3 or not attention.kwargs.keys() <= {"attn_mask", "scale"}:
        return False  # dropout, or a causal mask, which orders the rows
    query, key, value = attention.args
    keys, values = _repeated(key), _repeated(value)
    if not keys or not values or keys.sizes[:3] != values.sizes[:3]:
        return False
    if not _is_one_token(query) or not _is_one_row(attention.kwargs.get("attn_mask")):
        return False
    if any(output.users and output.args[1] != 0 for output in attention.users):
        return False  # the sums of the softmax are of no use for inference
    batch, groups, repeats, _, size = keys.sizes

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        new = graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = map_arg((args, kwargs), lambda node: node.meta["val"])
        new.meta["val"] = target(*fake_args, **fake_kwargs)
        return new

    with graph.inserting_before(attention):
        grouped = call(aten.view.default, query, [batch, groups, repeats, 1, size])
        shared = call(
            ATTENTION,
            call(aten.squeeze.dim, grouped, 3),
            call(aten.squeeze.dim, keys.once, 2),
            call(aten.squeeze.dim, values.once, 2),
            **attention.kwargs,
        )
        heads = call(getitem, shared, 0)
        rows = call(aten.clone.default, heads, memory_format=torch.contiguous_format)
        out = call(aten.view.default, rows, [batch, keys.heads, 1, values.sizes[-1]])
    for output in list(attention.users):
        output.replace_all_uses_with(out)
        graph.erase_node(output)
    graph.erase_node(attention)  # which counts as random, so it would not be dead otherwise
    return True


def _repeated(node: Any) -> Repeated | None:
    """Return what is repeated for every query head; None where nothing is."""
    sizes: Any
    if node.target not in (aten._unsafe_view.default, aten.view.default):
        return None
    heads = node.args[1][1]
    source = node.args[0]
    if source.target is aten.clone.default:
        source = source.args[0]
    if source.target is not aten.expand.default:
        return None
    once, sizes = source.args[:2]
    before, after, merged = g.shape(once) or (), g.shape(source) or (), g.shape(node) or ()
    if len(before) != 5 or len(after) != 5 or before != (*after[:2], 1, *after[3:]):
        return None
    if after[2] == 1 or merged != (after[0], after[1] * after[2], *after[3:]):
        return None
    return None if -1 in sizes or -1 in node.args[1] else Repeated(once, sizes, heads)


def _is_one_token(query: Any) -> bool:
    """Return whether ``[B, GN, T, D]`` has T = 1 in every call of the graph."""
    sizes = query.meta["val"].shape
    return len(sizes) == 4 and isinstance(sizes[2], int) and sizes[2] == 1


def _is_one_row(mask: Any) -> bool:
    """Return whether a mask ``[B, 1, 1, S]`` says the same to all heads; None is such a mask."""
    return mask is None or (g.shape(mask) or ())[1:-1] == (1, 1)
