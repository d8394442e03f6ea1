"""The passes over one captured graph: find, check, verify, rewrite, clean up, report.

Works on a functional ATen graph without decompositions, so that activations are still whole.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from modes_fx.passes import graph as g
from modes_fx.passes.attention import share_keys
from modes_fx.passes.batched_mm import BatchedMM
from modes_fx.passes.dense_bmm import DenseBMM
from modes_fx.passes.fuse import fuse_gates
from modes_fx.passes.grouped_mm import GroupedMM
from modes_fx.passes.loops.op import LoopOp
from modes_fx.passes.other_devices import whole_choice
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, NoMatchError, Region
from modes_fx.passes.report import COMPUTED, LayerReport, NearestMiss, Stage
from modes_fx.passes.rewrite import find_marker, remove_markers, resolve_gate, rewrite
from modes_fx.passes.router import RouterOrigin, router_origin
from modes_fx.passes.subset import origin_of
from modes_fx.passes.tables import Tables
from modes_fx.passes.verify import verify

PATTERNS: Sequence[Pattern] = (GroupedMM(), BatchedMM(), DenseBMM(), Tables(), LoopOp())


def rewrite_graph(
    module: GraphModule, inputs: Mapping[Node, Any], names: Mapping[Node, str]
) -> list[LayerReport]:
    """Rewrite every MoE region of a graph that can be proved right; leave the others as they are.

    Args:
        module: a functional ATen graph; changed in place.
        inputs: the real value of each of its inputs, as far as there is one.
        names: the qualified name of each input that is a parameter or buffer.

    Returns:
        What became of each MoE layer.
    """
    graph = module.graph
    candidates = [(pattern, found) for pattern in PATTERNS for found in pattern.find(graph)]
    unknown = _unknown_forms(graph, names, [candidate for _, candidate in candidates])
    verified: dict[str, float] = {}
    reports = [
        _one_layer(pattern, candidate, module, inputs, names, verified)
        for pattern, candidate in candidates
    ]
    marked = {_owner(names.get(theta, "")) for theta in remove_markers(graph)}
    reports += _left_alone(marked, unknown, reports)
    graph.eliminate_dead_code()
    if fuse_gates(graph) + share_keys(graph):
        graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return reports


def refuse_graph(module: GraphModule, reason: str) -> list[LayerReport]:
    """Leave every region of a graph as it is, take its markers out, and say why for each."""
    reports = [LayerReport("", "refused", reason=reason) for _ in remove_markers(module.graph)]
    module.recompile()
    return reports


def _one_layer(
    pattern: Pattern,
    candidate: Candidate,
    module: GraphModule,
    inputs: Mapping[Node, Any],
    names: Mapping[Node, str],
    verified: dict[str, float],
) -> LayerReport:
    path = _owner(names.get(g.weights_behind(candidate.gemms[0].weight)[0], ""))
    try:
        region = pattern.check(candidate)
    except NoMatchError as failure:
        miss = NearestMiss(pattern.name, "cut", failure.node)
        return LayerReport(path, "refused", pattern.name, str(failure), nearest_miss=miss)
    described = _describe(region, path, router_origin(region.index, region.weight, names))
    stage: Stage = "gate"
    try:
        marker = find_marker(region)
        gate = resolve_gate(marker, region) if marker is not None else None
        if gate is not None:
            described = _placed(described, _owner(names.get(gate.theta, "")))
            _check_tokens(region, inputs.get(gate.tokens) if gate.tokens else None)
            whole_choice(region)
        if not pattern.proved and not _has_real_weights(region, inputs):
            reason = "its weights are not real tensors, so the match could not be proved"
            return replace(described, status="unverified", reason=reason)
        stage, signature = "proof", _signature(region)
        if signature not in verified and not pattern.proved:
            verified[signature] = verify(region, inputs)
    except NoMatchError as failure:
        miss = NearestMiss(pattern.name, stage, failure.node)
        return replace(described, reason=str(failure), nearest_miss=miss)
    rewrite(module.graph, region, gate)
    return replace(described, status="rewritten", max_error=verified.get(signature))


def _placed(layer: LayerReport, path: str) -> LayerReport:
    """Return a layer's report with its full path; names are relative where it is captured alone."""
    absolute, relative = path.split("."), layer.path.split(".")
    matrix = layer.router_weight
    for shared in range(len(relative), 0, -1):
        if matrix and absolute[-shared:] == relative[:shared]:
            matrix = ".".join([*absolute[:-shared], matrix])
            break
    return replace(layer, path=path, router_weight=matrix, gated=True)


def _check_tokens(region: Region, tokens: Any) -> None:
    """Check that the experts' tokens are those whose modality the call has written, or some."""
    origin = origin_of(region.x)
    if origin.tokens is None:
        raise NoMatchError(
            "how many tokens its experts see depends on data, and the rows they were picked from "
            "are not in the same graph, so their modality is not known"
        )
    if not isinstance(tokens, torch.Tensor) or tokens.device.type == "meta":
        return
    with unset_fake_temporarily():
        in_call = int(tokens)
    if in_call not in (0, origin.tokens):
        raise NoMatchError(
            f"its experts see {origin.tokens} tokens while the call has {in_call}, so their "
            "modality is not known"
        )


def _unknown_forms(
    graph: Graph, names: Mapping[Node, str], candidates: Iterable[Candidate]
) -> dict[str, Node]:
    """Return what reads the stacked weights of modules in a form that no pattern knows."""
    gemms = [gemm for candidate in candidates for gemm in candidate.gemms]
    known = {weight for gemm in gemms for weight in g.weights_behind(gemm.weight)}
    stacked = defaultdict(list)
    for node in graph.nodes:
        dimensions = g.shape(node) or ()
        read = any(user.target is not g.MARKER for user in node.users)
        if g.is_weight(node) and read and len(dimensions) == 3 and dimensions[0] > 1:
            stacked[_owner(names.get(node, "")), dimensions[0]].append(node)
    return {
        owner: next(iter(weights[0].users))
        for (owner, _), weights in stacked.items()
        if len(weights) >= 2 and not known.intersection(weights)
    }


def _left_alone(
    marked: set[str], unknown: Mapping[str, Node], reports: Sequence[LayerReport]
) -> list[LayerReport]:
    """Report the layers that no pattern found, and those whose thresholds reach no region."""
    explained = {report.path for report in reports if report.gated or report.status == "refused"}
    rewritten = {report.path for report in reports if report.status == "rewritten"}
    reasons = {
        path: "its experts do not read the marked input itself, so all of them are kept"
        if path in rewritten
        else "no GEMM over stacked expert weights follows in the captured graph"
        for path in marked - explained
    }
    for path in unknown.keys() - explained - rewritten - marked:
        reasons[path] = "its stacked expert weights are used in a way that no pattern knows"
    readers = {path: node.name for path, node in unknown.items()}
    return [
        LayerReport(
            path,
            "refused",
            reason=reason,
            nearest_miss=NearestMiss("", "find", readers.get(path, "")),
        )
        for path, reason in sorted(reasons.items())
    ]


def _describe(region: Region, path: str, origin: RouterOrigin) -> LayerReport:
    """Describe a region that is not rewritten yet."""
    last = region.gemms[-1]
    down = g.shape(last.weight) or (0, 0, 0)
    return LayerReport(
        path=path,
        status="refused",
        form=region.form,
        num_experts=region.num_experts,
        top_k=(g.shape(region.index) or (0, 0))[1],
        hidden_size=(g.shape(region.x) or (0, 0))[1],
        intermediate_size=_rows_size(down, last.transposed),
        body=region.body.summary(),
        router=origin.ops,
        router_weight=origin.weight,
        weights=_weights(region),
    )


def _weights(region: Region) -> str:
    if any(not g.is_input(gemm.weight) for gemm in region.gemms):
        return COMPUTED
    kinds = dict.fromkeys(g.dtype(gemm.weight) for gemm in region.gemms)
    return ", ".join(str(kind).removeprefix("torch.") for kind in kinds)


def _rows_size(weight: tuple[int, ...], transposed: bool) -> int:
    """Return how long the rows are that a stacked weight multiplies; panels count as one."""
    if len(weight) == 5:
        return weight[2] * weight[4]
    return weight[2 if transposed else 1] if len(weight) == 3 else 1


def _has_real_weights(region: Region, inputs: Mapping[Node, Any]) -> bool:
    params = [inputs.get(node) for param in region.params for node in g.weights_behind(param)]
    return all(param is not None and param.device.type != "meta" for param in params)


def _signature(region: Region) -> str:
    nodes = region.nodes
    boundary = (*region.params, *region.boundary)
    number = {node: position for position, node in enumerate((*boundary, *nodes))}
    lines = [region.body.to_json(), *(str(node.meta["val"]) for node in boundary)]
    for node in nodes:
        args = map_arg((node.args, node.kwargs), lambda source: f"#{number.get(source, -1)}")
        lines.append(f"{node.target} {args} {node.meta['val']}")
    return "\n".join(lines)


def _owner(name: str) -> str:
    # A parametrised weight is kept by modules inside the one that owns it.
    owner, parametrised, _ = name.partition(".parametrizations.")
    return owner if parametrised else name.rpartition(".")[0]
