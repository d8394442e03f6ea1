"""Measure one type: the unmodified model, the oracle, and the rewritten model, call by call."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from modes_fx.attach import attach, attached, pair_counts, set_thetas
from modes_fx.backend import BackendOptions, CompiledGraph, compile_graph
from modes_fx.bench.coverage.calls import converse, distance
from modes_fx.bench.coverage.oracle import Layer, Oracle
from modes_fx.bench.coverage.original import Original
from modes_fx.bench.coverage.record import TOLERANCE, CallRecord, Record
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.hooks import keep_all_theta
from modes_fx.passes.report import LayerReport
from modes_fx.vocabulary import Modality

Compiled = Callable[..., Any]
After = Callable[[int, Sequence[Sequence[LayerReport]]], None]
"""Called after each call with its number and what was captured for it."""


def measure(model_type: str) -> Record:
    """Build, run and rewrite one type; whatever goes wrong is part of the record."""
    started = time.monotonic()
    record = Record(model_type)
    try:
        original = Original(model_type, record)
    except Exception:  # the type leaves the denominator with this traceback
        record.traceback = traceback.format_exc()
    else:
        try:
            Comparison(original, record).run()
        except Exception:  # ours failed: the record says how
            record.failure = traceback.format_exc()
    record.seconds = round(time.monotonic() - started, 1)
    return record


class Comparison:
    """The rewritten model beside the unmodified one and the oracle."""

    def __init__(self, original: Original, record: Record) -> None:
        """Prepare to compare; nothing is compiled yet."""
        self.original, self.record = original, record
        self.inputs = original.inputs
        self.model = tiny_model(record.model_type)  # what attach does must not reach the oracle
        self.captures: list[Sequence[LayerReport]] = []
        self.attached = False

    def run(self) -> None:
        """Fill the record."""
        logits, seen = self._ask_oracle(lambda number, path: False)
        self.record.layers = sorted({path for layers in seen for path in layers})
        self.record.calls = [CallRecord(layers=sorted(layers)) for layers in seen]
        for expected, actual in zip(self.original.logits, logits, strict=True):
            if not (error := distance(expected, actual)) <= TOLERANCE:
                raise ArithmeticError(f"the oracle that skips nothing is off by {error:.1e}")
        with torch.no_grad():
            self.model(**self.inputs.prefill)  # transformers installs its own hooks in a first call
        try:
            attach(self.model, None, count_pairs=True)
            self.attached = True
        except ValueError as error:
            self.record.reasons = dict.fromkeys(self.record.layers, str(error))
        compiled = self._keep_all()
        if any(call.rewritten for call in self.record.calls):
            self._skip_half(compiled)

    def _ask_oracle(
        self, skip_in: Callable[[int, str], bool]
    ) -> tuple[list[Tensor], list[Mapping[str, Layer]]]:
        oracle = Oracle(self.original.model)
        seen: list[Mapping[str, Layer]] = []

        def call(number: int, arguments: dict[str, Any]) -> Any:
            codes = self.inputs.codes if number == 0 else torch.tensor([Modality.TEXT.value])
            output = oracle(codes, lambda path: skip_in(number, path), **arguments)
            seen.append(oracle.layers)
            return output

        return converse(self.original.model, call, self.inputs, static=self.original.static), seen

    def _keep_all(self) -> Compiled:
        """Compare with thresholds that keep all pairs; capture everything on the way."""
        breaks = counters["graph_break"].copy()
        compiled, logits = self._compiled_calls(fullgraph=self.record.original_fullgraph)
        self.record.breaks = [
            reason.strip().splitlines()[0] for reason in counters["graph_break"] - breaks
        ]
        for call, expected, actual in zip(
            self.record.calls, self.original.logits, logits, strict=True
        ):
            call.error_all_kept = distance(expected, actual)
        return compiled

    def _compiled_calls(self, *, fullgraph: bool) -> tuple[Compiled, list[Tensor]]:
        def backend(module: GraphModule, example_inputs: Sequence[Any]) -> CompiledGraph:
            options = BackendOptions(compiler="eager")
            return compile_graph(module, example_inputs, options, self.captures.append)

        compiled = torch.compile(self.model, backend=backend, fullgraph=fullgraph)
        try:
            logits = self._converse(compiled, self._note_rewritten)
        except Exception as error:  # not one graph, though the original is: the record says why
            if not fullgraph:
                raise
            torch.compiler.reset()
            self.captures.clear()
            self.record.calls = [CallRecord(layers=call.layers) for call in self.record.calls]
            self.record.fullgraph_error = str(error)
            return self._compiled_calls(fullgraph=False)
        self.record.fullgraph = fullgraph
        return compiled, logits

    def _converse(self, compiled: Compiled, after: After) -> list[Tensor]:
        def call(number: int, arguments: dict[str, Any]) -> Any:
            captured = len(self.captures)
            if self.attached:
                pair_counts(self.model, reset=True)
            output = compiled(**arguments)
            after(number, self.captures[captured:])
            return output

        return converse(self.model, call, self.inputs, static=self.original.static)

    def _note_rewritten(self, number: int, captures: Sequence[Sequence[LayerReport]]) -> None:
        call = self.record.calls[number]
        call.graphs = len(captures)
        counted = pair_counts(self.model) if self.attached else {}
        for layer in call.layers:
            counts = [count for path, count in counted.items() if is_same(layer, path)]
            if any(knows_modality(count) for count in counts):
                call.rewritten.append(layer)
            elif any(count.any() for count in counts):
                self.record.reasons[layer] = "the modality of its tokens is not known in some calls"
            else:
                refused = [
                    report.reason
                    for reports in captures
                    for report in reports
                    if report.status != "rewritten"
                    and (not report.path or is_same(layer, report.path))
                ]
                reason = refused[0] if refused else "no captured graph contains it"
                self.record.reasons.setdefault(layer, reason)

    def _skip_half(self, compiled: Compiled) -> None:
        """Compare with the oracle, each layer and modality with a threshold of its own."""
        calls = self.record.calls
        expected, seen = self._ask_oracle(lambda number, path: path in calls[number].rewritten)
        layers = attached(self.model).layers

        def set_for(number: int) -> None:
            set_thetas(self.model, {path: theta_of(path, seen[number]) for path in layers})

        def note(number: int, captures: Sequence[Sequence[LayerReport]]) -> None:
            call = calls[number]
            call.graphs_after_thresholds = len(captures)
            gated = [layer for path, layer in seen[number].items() if path in call.rewritten]
            counted = [count for count in pair_counts(self.model).values() if knows_modality(count)]
            for code in Modality:
                add(call.pairs, code, sum(int(count[code, 0]) for count in counted))
                add(call.kept, code, sum(int(count[code, 1]) for count in counted))
                add(call.pairs_by_oracle, code, sum(layer.pairs.get(code, 0) for layer in gated))
                add(call.kept_by_oracle, code, sum(layer.kept.get(code, 0) for layer in gated))
            if number + 1 < len(calls):
                set_for(number + 1)

        set_for(0)
        logits = self._converse(compiled, note)
        for call, original, oracle, actual in zip(
            calls, self.original.logits, expected, logits, strict=True
        ):
            call.effect = distance(original, oracle)
            call.error_skipping = distance(oracle, actual)


def theta_of(path: str, seen: Mapping[str, Layer]) -> Tensor:
    """Return the thresholds ``[M]`` that the oracle used in the layer of a path."""
    theta = keep_all_theta()
    for layer_path, layer in seen.items():
        if is_same(layer_path, path):
            for code, value in layer.thetas.items():
                theta[code] = value
    return theta


def knows_modality(count: Tensor) -> bool:
    """Return whether a layer counted pairs ``[M, 2]`` of tokens whose modality it was told."""
    return bool(count.any()) and not bool(count[Modality.OTHER].any())


def is_same(layer: str, path: str) -> bool:
    """Return whether two paths name one layer: the experts, or the block that holds only them."""
    return layer == path or layer.startswith(f"{path}.") or path.startswith(f"{layer}.")


def add(counts: dict[str, int], code: Modality, count: int) -> None:
    """Note a count under a modality's name, if there is anything to count."""
    if count:
        counts[code.label] = count
