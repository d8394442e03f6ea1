"""Replace a region by ``modes_fx::gate`` and ``modes_fx::experts``, and consume markers."""

from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from modes_fx.passes import graph as g
from modes_fx.passes.other_devices import whole_choice
from modes_fx.passes.region import NoMatchError, Region
from modes_fx.passes.subset import origin_of, pick_codes
from modes_fx.vocabulary import default_share

GATE = torch.ops.modes_fx.gate.default
EXPERTS = torch.ops.modes_fx.experts.default
COUNT_PAIRS = torch.ops.modes_fx.count_pairs.default
ADD_SKIPPED_MEANS = torch.ops.modes_fx.add_skipped_means.default
COLLECT_SKIPPED = torch.ops.modes_fx.collect_skipped.default


class GateArguments(NamedTuple):
    """What a marker carries for its layer; see ``modes_fx.ops.marker``."""

    theta: Node
    modality: Node
    tokens: Node | None
    counts: Node
    share: str
    kept_mass_exponent: float
    min_k: int
    means: Node | None = None
    sums: Node | None = None


def find_marker(region: Region) -> Node | None:
    """Return the marker of a region; None where the model is not attached.

    It stands in front of the experts' input, or of their combine weights, or of rows that hold the
    input once for every expert.

    Raises:
        NoMatchError: the marker saw other tokens than the region computes.
    """
    sources = [g.through_views(node) for node in (region.x, region.weight)]
    node = next((source for source in sources + region.nodes if source.target is g.MARKER), None)
    if node is None:
        return None
    tokens = (g.shape(region.x) or (0,))[0]
    marked = prod((g.shape(node) or ())[:-1])
    if marked != tokens * (1 if node in sources else region.num_experts):
        raise NoMatchError(f"its experts see {tokens} tokens, its marker {marked}", node)
    return node


def resolve_gate(marker: Node, region: Region) -> GateArguments:
    """Return the gate's arguments, with the default share chosen by K.

    Raises:
        NoMatchError: the policy asks for a share that cannot be had here.
    """
    arguments: Any = marker.args[1:]
    gate = GateArguments(*arguments)
    if gate.share == "router":
        raise NoMatchError(
            "the policy compares the router's own probability (share='router'), which this release "
            "cannot find in a graph: recalibrate with share='renormalised' or 'weight'"
        )
    spread = whole_choice(region).elsewhere is not None
    if spread and (gate.means is not None or gate.sums is not None):
        raise NoMatchError(
            "its experts are spread over devices, where mean outputs of skipped experts cannot be "
            "added: calibrate a policy without them (mean_strength=0)"
        )
    if gate.share == "auto":
        top_k = (g.shape(region.index) or (0, 0))[1]
        gate = gate._replace(share=default_share(top_k))
    return gate


@dataclass(frozen=True)
class KeptPairs:
    """What the experts compute behind a gate.

    ``compensation`` are the arguments of ``modes_fx::add_skipped_means`` but its first; None where
    the policy has no means.
    """

    index: Node
    weight: Node
    compensation: tuple[Node, ...] | None = None


def rewrite(graph: Graph, region: Region, gate: GateArguments | None) -> None:
    """Put the ops in the place of a region, whose old nodes nothing reads then."""
    experts = (list(region.params), region.body.to_json(), region.num_experts)
    with graph.inserting_before(region.out):
        pairs = KeptPairs(region.index, region.weight)
        if gate is not None:
            pairs = _gated(graph, region, gate, experts)
        result = graph.call_function(EXPERTS, (region.x, pairs.index, pairs.weight, *experts))
        if pairs.compensation is not None:
            result = graph.call_function(ADD_SKIPPED_MEANS, (result, *pairs.compensation))
    result.meta = dict(region.out.meta)
    region.out.replace_all_uses_with(result)


def _gated(
    graph: Graph, region: Region, gate: GateArguments, experts: tuple[Any, ...]
) -> KeptPairs:
    """Put the gate in front of a region, and what is counted and collected behind it."""
    gate, choice = _of_own_tokens(graph, region, gate), whole_choice(region)
    kept = graph.call_function(
        GATE,
        (
            choice.index,
            choice.weight,
            gate.modality,
            gate.tokens,
            gate.theta,
            region.skipped_id,
            gate.share,
            gate.kept_mass_exponent,
            gate.min_k,
        ),
    )
    index = graph.call_function(getitem, (kept, 0))
    weight = graph.call_function(getitem, (kept, 1))
    if region.weight.target is g.MARKER:
        # What else is computed from the weights must not see those of skipped pairs either.
        region.weight.replace_all_uses_with(weight, lambda user: user is not kept)
    if (g.shape(gate.counts) or (0,))[0]:
        counting = (gate.counts, index, gate.modality, region.skipped_id)
        graph.call_function(COUNT_PAIRS, counting)
    chosen = (choice.index, choice.weight, index, gate.modality)
    if gate.sums is not None:
        graph.call_function(COLLECT_SKIPPED, (gate.sums, region.x, *chosen, *experts))
    if choice.elsewhere is not None:
        masking = (choice.elsewhere, region.skipped_id, index)
        index = graph.call_function(g.aten.where.ScalarSelf, masking)
    return KeptPairs(index, weight, None if gate.means is None else (*chosen, gate.means))


def _of_own_tokens(graph: Graph, region: Region, gate: GateArguments) -> GateArguments:
    """Give the gate the codes of the region's own tokens, where they are a part of the call's."""
    origin = origin_of(region.x)
    if not origin.picks:
        return gate
    assert gate.tokens is not None
    codes = pick_codes(graph, origin, gate.modality, gate.tokens)
    return gate._replace(modality=codes, tokens=None)


def remove_markers(graph: Graph) -> list[Node]:
    """Take every marker out of the graph; return the threshold input of each, in order."""
    thetas = []
    for node in list(graph.nodes):
        if node.target in (g.MARKER, torch.ops.modes_fx.marker):
            thetas.append(node.args[1])
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return thetas
