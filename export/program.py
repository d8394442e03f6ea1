"""From a model and a policy to an exported program whose experts are gated.

transformers' own exporter captures the model; the passes are those of the backend. What differs is
where constants come from: thresholds are buffers of the program, under the path of their layer, and
each token's modality is computed in the graph from ``input_ids``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from transformers import PreTrainedModel
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

import modes_fx.hooks as h
from modes_fx.attach import attach, attached, detach, is_attached
from modes_fx.export.errors import ExportError
from modes_fx.modality import DeviceCodes, ModalityBuffer, TokenIds, modality_codes
from modes_fx.passes.pipeline import rewrite_graph
from modes_fx.passes.report import LayerReport
from modes_fx.policy import SkipPolicy

Inputs = Mapping[str, Tensor]
EXPERTS = torch.ops.modes_fx.experts.default


@dataclass(frozen=True)
class GatedProgram:
    """An exported program with gated experts.

    Attributes:
        program: takes tensors by name, returns logits ``[B, S, V]``; batch, sequence and image
            size are dynamic, as far as the model's own code allows.
        layers: what became of each MoE layer.
    """

    program: ExportedProgram
    layers: list[LayerReport]


def gated_program(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    inputs: Inputs,
    *,
    allow_partial: bool = False,
) -> GatedProgram:
    """Export a model without a cache, with a policy's thresholds inside.

    Args:
        model: not attached; left as it was.
        policy: for this model.
        target: one of its targets.
        inputs: one call's tensors, of at least two samples and tokens: sizes of 1 become fixed.
        allow_partial: whether layers that cannot be rewritten may stay as they are.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ExportError: the model is attached, cannot be captured, or has layers that are not
            rewritten.
    """
    if is_attached(model):
        raise ExportError("the model is attached: call modes_fx.detach(model) before exporting it")
    with _gates_in_graph(model, policy, target), _logits_only(model):
        program = _capture(model, inputs)
    program = program.run_decompositions({})
    layers = _rewrite(program)
    left = [layer for layer in layers if layer.status != "rewritten" or not layer.gated]
    if left and not allow_partial:
        raise ExportError(
            f"{len(left)} of {len(layers)} MoE layers were not rewritten, and would compute every "
            f"expert; the first is {left[0].path or '(unnamed)'}: {left[0].reason}. Export with "
            "--allow-partial (allow_partial=True) to have the others gated"
        )
    return GatedProgram(program, layers)


def exportable_inputs(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """Return a call's inputs as the program takes them.

    A model that derives positions from the kinds of tokens does so with code that depends on data,
    which no graph can hold: it is given the positions in their place.

    Args:
        model: whose inputs these are.
        inputs: as a processor returns them.
    """
    given = dict(inputs)
    kinds = given.pop("mm_token_type_ids", None)
    positions_of = getattr(getattr(model, "model", model), "get_rope_index", None)
    if kinds is not None and positions_of is not None:
        grids = {k: v for k, v in given.items() if k.endswith("_grid_thw")}
        positions, _ = positions_of(
            given["input_ids"],
            mm_token_type_ids=kinds,
            attention_mask=given.get("attention_mask"),
            **grids,
        )
        given["position_ids"] = positions
    return given


def gates(program: ExportedProgram) -> list[Node]:
    """Return the nodes that compute gated experts."""
    return [node for node in program.graph.nodes if node.target is EXPERTS]


def keep_every_expert(program: ExportedProgram) -> torch.nn.Module:
    """Return a program that can be called, with thresholds that skip nothing but padding."""
    module = program.module()
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] == h.THETA:
            buffer.copy_(h.keep_all_theta())
    return module


class _CodesInGraph(ModalityBuffer):
    """Stands in for the modality buffer while a model is captured."""

    def __init__(self) -> None:
        super().__init__((), 0)
        self.codes: DeviceCodes | None = None

    def on(self, device: torch.device) -> DeviceCodes:
        assert self.codes is not None, "the model's own hook runs before its layers"
        return self.codes


@contextmanager
def _gates_in_graph(model: PreTrainedModel, policy: SkipPolicy, target: float) -> Iterator[None]:
    """Attach so that a call computes the modality of its tokens where it can be captured."""
    attach(model, policy, target=target)
    try:
        attachment = attached(model)
        if attachment.decoder_modality is not None:
            raise ExportError("models with an encoder and a decoder cannot be exported yet")
        for _ in range(2):  # what reads the modality outside the graph
            attachment.handles.pop().remove()
        codes = _CodesInGraph()
        for layer in attachment.layers.values():
            gate: h.GateOptions = getattr(layer, h.GATE)
            if gate.modality is attachment.modality:
                setattr(layer, h.GATE, replace(gate, modality=codes))
        special = policy.special_token_ids if policy.special_tokens == "keep" else ()
        token_ids = TokenIds.from_config(model.config, special)

        def write_codes(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            mask = kwargs.get("attention_mask")
            found = modality_codes(token_ids, kwargs["input_ids"], attention_mask=mask)
            count = torch.full((1,), found.shape[0], dtype=torch.int64, device=found.device)
            codes.codes = DeviceCodes(found, count)

        attachment.handles.append(model.register_forward_pre_hook(write_codes, with_kwargs=True))
        yield
    finally:
        detach(model)


@contextmanager
def _logits_only(model: PreTrainedModel) -> Iterator[None]:
    # transformers' output classes would be needed to load the program.
    handle = model.register_forward_hook(lambda module, args, output: output.logits)
    try:
        yield
    finally:
        handle.remove()


def _capture(model: PreTrainedModel, inputs: Inputs) -> ExportedProgram:
    if "input_ids" not in inputs:
        raise ExportError("the modality of tokens comes from input_ids, and there are none")
    exporter, config = DynamoExporter(), DynamoConfig(dynamic=True)
    arguments = {**inputs, "use_cache": False}
    try:
        program, _ = exporter.export_program(model, arguments, config)
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} cannot be captured by torch.export with "
            f"{', '.join(inputs)}: {str(error).strip().splitlines()[0]}"
        ) from error
    return program


def _rewrite(program: ExportedProgram) -> list[LayerReport]:
    module = program.graph_module
    for node in list(module.graph.nodes):
        # They check what export has just recorded, and count as uses of what they check.
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
    stored = {**program.constants, **program.state_dict}
    values: dict[Node, Any] = {}
    names: dict[Node, str] = {}
    placeholders = (node for node in module.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.target is None or not isinstance(stored.get(spec.target), Tensor):
            continue
        owner, _, last = spec.target.rpartition(".")
        values[node] = stored[spec.target]
        names[node] = f"{owner}.theta" if last == h.THETA else spec.target
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "guarded"}
    layers = rewrite_graph(module, values, names)
    _describe_new_nodes(module.graph)
    program.validate()
    return layers


def _describe_new_nodes(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
            node.meta["val"] = node.target(*args, **kwargs)
