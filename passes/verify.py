"""Numeric proof that a region and its rewrite compute the same, on the real weights.

A structural match proves nothing. The original nodes are run on random tokens with all pairs kept,
and with about half of the pairs skipped by a weight of 0; the rewrite must agree on both. As many
tokens are drawn as the captured call had, because sizes may be written into the nodes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Node
from torch.fx.node import map_arg

from modes_fx import ops as ops  # registers the op
from modes_fx.kernels import reference
from modes_fx.passes import graph as g
from modes_fx.passes.agreement import check_agreement
from modes_fx.passes.region import NoMatchError, Region
from modes_fx.passes.sizes import value_of

ENOUGH_PAIRS = 64
"""Where a call has fewer pairs, several draws are compared: one may agree by accident."""


def verify(region: Region, inputs: Mapping[Node, Any]) -> float:
    """Compare a region with its rewrite.

    Args:
        region: the region.
        inputs: the graph's inputs as real tensors, at least those the region reads.

    Returns:
        The largest absolute difference, as a fraction of the largest output.

    Raises:
        NoMatchError: they differ.
    """
    tokens, top_k = g.shape(region.index) or (1, 1)
    draws = -(-ENOUGH_PAIRS // max(tokens * top_k, 1))
    try:
        with unset_fake_temporarily(), torch.no_grad():
            return max(_compare(region, inputs, seed) for seed in range(draws))
    except (RuntimeError, IndexError, TypeError) as error:
        raise NoMatchError(f"the proof could not be run: {error}") from error


def _compare(region: Region, inputs: Mapping[Node, Any], seed: int) -> float:
    params = [evaluate(param, inputs) for param in region.params]
    generator = torch.Generator().manual_seed(seed)
    x, index, weight = _random_tokens(region, params[0].device, generator)
    skipped = torch.rand(weight.shape, generator=generator).to(weight.device) < 0.5
    largest = 0.0
    for skip in (torch.zeros_like(skipped), skipped):
        original = _run(region, inputs, x, index, weight.masked_fill(skip, 0))
        choice = index.masked_fill(skip, region.num_experts)
        rewritten = torch.ops.modes_fx.experts(
            x, choice, weight, params, region.body.to_json(), region.num_experts
        )
        args = (choice, weight, params, region.body, region.num_experts)
        error = check_agreement(
            original,
            rewritten,
            lambda args=args: reference.experts(x.float(), *args),  # type: ignore[misc]
            f"{int(skip.sum())} of {skip.numel()} pairs skipped",
        )
        largest = max(largest, error)
    return largest


def evaluate(param: Node, inputs: Mapping[Node, Any]) -> Tensor:
    """Return the value of a graph input, or of what is computed from graph inputs alone."""
    values = {node: inputs[node] for node in g.weights_behind(param)}
    for node in () if param in values else g.between(param, ()):
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = values[param]
    return result


def _random_tokens(
    region: Region, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, hidden = g.shape(region.x) or (0, 0)
    top_k = (g.shape(region.index) or (0, 0))[1]
    x = torch.randn(tokens, hidden, generator=generator)
    # Of a layer that is spread over devices, this one may hold fewer experts than a token has.
    scores = torch.rand(tokens, max(region.num_experts, top_k), generator=generator)
    weight, index = scores.softmax(-1).topk(top_k, dim=-1)
    return (
        x.to(device, g.dtype(region.x)),
        (index % region.num_experts).to(device, g.dtype(region.index)),
        (weight * region.num_experts / top_k).to(device, g.dtype(region.weight)),
    )


def _run(
    region: Region, inputs: Mapping[Node, Any], x: Tensor, index: Tensor, weight: Tensor
) -> Tensor:
    values: dict[Node, Any] = {region.x: x, region.index: index, region.weight: weight}
    if region.dense is not None:
        by_expert = weight.new_zeros(len(x), region.num_experts)
        values[region.dense] = by_expert.scatter(1, index, weight)

    def read(node: Node) -> Any:
        if node in values:
            return values[node]
        value: Any = node.meta.get("val")
        return inputs[node] if isinstance(value, Tensor) else value_of(value)

    for node in region.nodes:
        if isinstance(node.meta.get("val"), int | torch.SymInt):
            values[node] = read(node)
        elif node.target is g.MARKER:
            values[node] = read(node.all_input_nodes[0])
        else:
            args, kwargs = map_arg((node.args, node.kwargs), read)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = values[region.out]
    return result
