"""explain: what the backend would do to a model, layer by layer, and why."""

import inspect
import json
import warnings
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
from modes_fx.passes.report import STAGES, LayerReport
from modes_fx.vocabulary import Modality


@dataclass(frozen=True)
class ExplainReport:
    """What became of a model's MoE layers in one call.

    Attributes:
        layers: one report for each MoE layer; of several captures the one that went worst.
        graphs: how many graphs Dynamo captured.
        graph_breaks: why it captured more than one, most frequent first.
        recompiles: how many of the graphs are of code that had been captured already, for other
            shapes or another layer.
        tokens: tokens of the call by modality name, padding left out; empty where the model was
            attached already, because its counters are not to be changed.
    """

    layers: tuple[LayerReport, ...]
    graphs: int
    graph_breaks: tuple[str, ...]
    recompiles: int
    tokens: dict[str, int]

    @property
    def matched(self) -> int:
        """How many MoE layers are rewritten."""
        return sum(layer.status == "rewritten" for layer in self.layers)

    @property
    def unverified(self) -> int:
        """How many MoE layers match, but had no real weights to prove it on."""
        return sum(layer.status == "unverified" for layer in self.layers)

    @property
    def vision_seen(self) -> bool | None:
        """Whether the call had vision tokens; None where its tokens were not counted."""
        return Modality.VISION.label in self.tokens if self.tokens else None

    def to_json(self) -> str:
        """Return the report for tools."""
        derived = {
            "matched": self.matched,
            "unverified": self.unverified,
            "vision_seen": self.vision_seen,
        }
        return json.dumps({**derived, **asdict(self)}, indent=2)

    def __str__(self) -> str:
        """Return the report for people."""
        lines = [self.summary(), *(_line(layer) for layer in self.layers)]
        if self.graph_breaks:
            lines += ["graph breaks:", *(f"  {reason}" for reason in self.graph_breaks)]
        return "\n".join(lines)

    def summary(self) -> str:
        """Return what became of the layers, the graphs and the tokens, in one line."""
        matched = f"{self.matched} of {len(self.layers)} MoE layers rewritten"
        if self.unverified:
            matched += f", {self.unverified} match unverified"
        return (
            f"{matched}; graphs captured: {self.graphs}, {self.recompiles} of them recompiles; "
            f"{self.describe_tokens()}"
        )

    def describe_tokens(self) -> str:
        """Return how many tokens of each modality the call had, in words."""
        if not self.tokens:
            return "tokens not counted"
        counts = ", ".join(f"{count} {name}" for name, count in self.tokens.items())
        return f"tokens: {counts}" if self.vision_seen else f"tokens: {counts}, no vision"


def explain(model: nn.Module, **inputs: Any) -> ExplainReport:
    """Call a model once through the passes and report on every MoE layer.

    The model is left as it was: where it is not attached, it is attached for this call only. What
    torch has captured so far is captured again when it is next needed. A model on the meta device
    (built from a config alone) is called without a cache; its layers are unverified at best.

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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "of the model's loops over experts")
            attach(model, None, count_pairs=True)
    try:
        return _explain(getattr(model, "_orig_mod", model), inputs, counted=temporary)
    finally:
        if temporary:
            detach(model)


def _explain(model: nn.Module, inputs: dict[str, Any], counted: bool) -> ExplainReport:
    captures: list[Sequence[LayerReport]] = []
    recompiles = 0

    def record(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> CompiledGraph:
        nonlocal recompiles
        capture = torch._guards.CompileContext.current_compile_id()
        recompiles += capture is not None and bool(capture.frame_compile_id)
        return compile_graph(
            module, example_inputs, BackendOptions(compiler="eager"), captures.append
        )

    if on_meta := _is_on_meta(model):
        inputs = _meta_inputs(model, inputs)
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
        recompiles=recompiles,
        tokens=_tokens_by_modality(model, layers) if counted and not on_meta else {},
    )


def _is_on_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def _meta_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    moved = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # Dynamo cannot follow the empty tensors that a cache starts from on the meta device.
        moved.setdefault("use_cache", False)
    return moved


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
        of_layer = {
            report.status: report
            for report in sorted(reports, key=_progress)
            if report.path == path
        }
        unseen = LayerReport(path, "refused", reason="no captured graph contains it")
        found = (of_layer.get(status) for status in ("refused", "unverified", "rewritten"))
        yield next(filter(None, found), unseen)


def _progress(layer: LayerReport) -> int:
    """Return how far matching came with a layer."""
    miss = layer.nearest_miss
    return len(STAGES) if miss is None else STAGES.index(miss.stage)


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
        f"I {layer.intermediate_size}, router {describe_router(layer)}"
        if layer.form and layer.num_experts
        else layer.form or "no dispatch found"
    )
    outcome = f"verified to {layer.max_error:.1e}" if layer.max_error is not None else layer.reason
    miss = f" [{layer.nearest_miss}]" if layer.nearest_miss else ""
    return f"  {layer.path}: {layer.status} ({shape}): {outcome}{miss}"


def describe_router(layer: LayerReport) -> str:
    """Return where a layer's combine weights come from, in words."""
    ops = layer.router or "outside this graph"
    return f"{ops} ({layer.router_weight})" if layer.router_weight else ops


def _first_line(reason: str) -> str:
    return reason.strip().splitlines()[0] if reason.strip() else "unknown reason"
