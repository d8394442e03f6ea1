"""explain: what the backend would do to a model, layer by layer, and why."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from modes_fx.attach import attach, attached, detach, is_attached, pair_counts
from modes_fx.backend import BackendOptions, CompiledGraph, compile_graph
from modes_fx.hooks import Attachment
from modes_fx.passes.report import LayerReport
from modes_fx.vocabulary import Modality


@dataclass(frozen=True)
class ExplainReport:
    """What became of a model's MoE layers in one call.

    Attributes:
        layers: one report for each MoE layer; of several captures the one that went worst.
        graphs: how many graphs Dynamo captured.
        graph_breaks: why it captured more than one, most frequent first.
        tokens: tokens of the call by modality name, padding left out; empty where the model was
            attached already, because its counters are not to be changed.
    """

    layers: tuple[LayerReport, ...]
    graphs: int
    graph_breaks: tuple[str, ...]
    tokens: dict[str, int]

    @property
    def matched(self) -> int:
        """How many MoE layers are rewritten."""
        return sum(layer.status == "rewritten" for layer in self.layers)

    def to_json(self) -> str:
        """Return the report for tools."""
        return json.dumps({"matched": self.matched, **asdict(self)}, indent=2)

    def __str__(self) -> str:
        """Return the report for people."""
        seen = ", ".join(f"{count} {name}" for name, count in self.tokens.items()) or "not counted"
        lines = [
            f"{self.matched} of {len(self.layers)} MoE layers rewritten; {self.graphs} graphs; "
            f"tokens: {seen}",
            *(_line(layer) for layer in self.layers),
        ]
        if self.graph_breaks:
            lines += ["graph breaks:", *(f"  {reason}" for reason in self.graph_breaks)]
        return "\n".join(lines)


def explain(model: nn.Module, **inputs: Any) -> ExplainReport:
    """Call a model once through the passes and report on every MoE layer.

    The model is left as it was: where it is not attached, it is attached for this call only. What
    torch has captured so far is captured again when it is next needed.

    Args:
        model: a transformers model, attached or not.
        inputs: the arguments of one call of it.

    Returns:
        The report; ``print`` shows it.

    Raises:
        ValueError: the model has no module that owns experts.
    """
    temporary = not is_attached(model)
    if temporary:
        attach(model, count_pairs=True)
    try:
        return _explain(getattr(model, "_orig_mod", model), inputs, counted=temporary)
    finally:
        if temporary:
            detach(model)


def _explain(model: nn.Module, inputs: dict[str, Any], counted: bool) -> ExplainReport:
    captures: list[Sequence[LayerReport]] = []

    def record(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> CompiledGraph:
        return compile_graph(
            module, example_inputs, BackendOptions(compiler="eager"), captures.append
        )

    breaks_before = counters["graph_break"].copy()
    with torch.no_grad(), _uncompiled(model):
        torch.compile(model, backend=record)(**inputs)
    breaks = counters["graph_break"] - breaks_before
    reports = [report for capture in captures for report in capture]
    layers = tuple(_with_loops(_worst(reports, attached(model).layers), attached(model)))
    return ExplainReport(
        layers=layers,
        graphs=len(captures),
        graph_breaks=tuple(_first_line(reason) for reason, _ in breaks.most_common()),
        tokens=_tokens_by_modality(model, layers) if counted else {},
    )


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Within the context, forget what ``model.compile`` set and what was captured before."""
    compiled_call, model._compiled_call_impl = model._compiled_call_impl, None
    torch.compiler.reset()
    try:
        yield
    finally:
        model._compiled_call_impl = compiled_call
        torch.compiler.reset()


def _worst(reports: Sequence[LayerReport], paths: Iterable[str]) -> Iterable[LayerReport]:
    for path in paths:
        of_layer = [report for report in reports if report.path == path]
        left = [report for report in of_layer if report.status != "rewritten"]
        unseen = LayerReport(path, "refused", reason="no captured graph contains it")
        yield (left or of_layer or [unseen])[0]


def _with_loops(reports: Iterable[LayerReport], attachment: Attachment) -> Iterable[LayerReport]:
    """Add what only attach knows: how exactly loops were proved, and why others were left."""
    for report in reports:
        loop = attachment.loops.get(report.path)
        if loop is not None and report.status == "rewritten":
            report = replace(report, max_error=loop.max_error)
        yield report
    for path, reason in attachment.left.items():
        yield LayerReport(path, "refused", form="loop", reason=reason)


def _tokens_by_modality(model: nn.Module, layers: Sequence[LayerReport]) -> dict[str, int]:
    counts = pair_counts(model)
    for layer in layers:
        pairs = counts[layer.path][:, 0]
        if layer.status == "rewritten" and layer.top_k:
            counted = [code for code in Modality if code is not Modality.PADDING and pairs[code]]
            return {code.label: int(pairs[code]) // layer.top_k for code in counted}
    return {}


def _line(layer: LayerReport) -> str:
    shape = (
        f"{layer.form}, {layer.num_experts} experts, top-{layer.top_k}, H {layer.hidden_size}, "
        f"I {layer.intermediate_size}"
        if layer.form and layer.num_experts
        else layer.form or "no dispatch found"
    )
    outcome = f"verified to {layer.max_error:.1e}" if layer.max_error is not None else layer.reason
    return f"  {layer.path}: {layer.status} ({shape}): {outcome}"


def _first_line(reason: str) -> str:
    return reason.strip().splitlines()[0] if reason.strip() else "unknown reason"
