"""The passes over one captured graph: find, check, verify, rewrite, clean up, report.

Works on a functional ATen graph without decompositions, so that activations are still whole.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule, Node

from modes_fx.passes import graph as g
from modes_fx.passes.batched_mm import BatchedMM
from modes_fx.passes.grouped_mm import GroupedMM
from modes_fx.passes.pattern import Pattern
from modes_fx.passes.region import Candidate, NoMatchError, Region
from modes_fx.passes.report import LayerReport
from modes_fx.passes.rewrite import find_marker, remove_markers, resolve_gate, rewrite
from modes_fx.passes.verify import verify

PATTERNS: Sequence[Pattern] = (GroupedMM(), BatchedMM())


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
    reports, verified = [], dict[str, float]()
    for pattern in PATTERNS:
        for candidate in pattern.find(graph):
            reports.append(_one_layer(pattern, candidate, module, inputs, names, verified))
    markers = {_owner(names.get(theta, "")) for theta in remove_markers(graph)}
    reports += list(_without_thresholds(markers, reports))
    graph.eliminate_dead_code()
    graph.lint()
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
    path = _owner(names.get(candidate.gemms[0].weight, ""))
    try:
        region = pattern.check(candidate)
        marker = find_marker(region)
        gate = resolve_gate(marker, region) if marker is not None else None
        if gate is not None:
            path = _owner(names.get(gate.theta, "")) or path
    except NoMatchError as failure:
        return LayerReport(path, "refused", form=candidate.form, reason=str(failure))
    if not _has_real_weights(region, inputs):
        reason = "its weights are not real tensors, so the match could not be proved"
        return _describe(region, path, "unverified", reason, gated=gate is not None)
    signature = _signature(region)
    try:
        if signature not in verified:
            verified[signature] = verify(region, inputs)
    except NoMatchError as failure:
        return _describe(region, path, "refused", str(failure), gated=gate is not None)
    rewrite(module.graph, region, gate)
    return _describe(
        region, path, "rewritten", "", gated=gate is not None, max_error=verified[signature]
    )


def _without_thresholds(
    markers: Iterable[str], reports: Iterable[LayerReport]
) -> Iterator[LayerReport]:
    """Report the marked layers whose thresholds no rewritten region took."""
    explained = {report.path for report in reports if report.gated or report.status == "refused"}
    rewritten = {report.path for report in reports if report.status == "rewritten"}
    for path in sorted(set(markers) - explained):
        if path in rewritten:
            reason = "its experts do not read the marked input itself, so all of them are kept"
        else:
            reason = "no GEMM over stacked expert weights follows in the captured graph"
        yield LayerReport(path, "refused", reason=reason)


def _describe(region: Region, path: str, status: Any, reason: str, **more: Any) -> LayerReport:
    hidden = (g.shape(region.x) or (0, 0))[1]
    down = g.shape(region.gemms[-1].weight) or (0, 0, 0)
    return LayerReport(
        path=path,
        status=status,
        form=region.form,
        reason=reason,
        num_experts=region.num_experts,
        top_k=(g.shape(region.index) or (0, 0))[1],
        hidden_size=hidden,
        intermediate_size=down[2] if region.gemms[-1].transposed else down[1],
        body=region.body.summary(),
        **more,
    )


def _has_real_weights(region: Region, inputs: Mapping[Node, Any]) -> bool:
    params = [inputs.get(param) for param in region.params]
    return all(param is not None and param.device.type != "meta" for param in params)


def _signature(region: Region) -> str:
    nodes = region.nodes
    boundary = (*region.params, region.x, region.index, region.weight)
    number = {node: position for position, node in enumerate((*boundary, *nodes))}
    lines = [region.body.to_json(), *(str(node.meta["val"]) for node in boundary)]
    for node in nodes:
        sources = [number.get(source, -1) for source in node.all_input_nodes]
        lines.append(f"{node.target} {sources} {node.meta['val']}")
    return "\n".join(lines)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
