"""From a model and a policy to an exported program whose experts are gated.

transformers' own exporter captures the model; the passes are those of the backend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from transformers import PreTrainedModel
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

import modes_fx.hooks as h
from modes_fx.export.gates import (
    CodesInGraph,
    Inputs,
    capturing,
    check_layers,
    gates_in_graph,
    rewrite_program,
)
from modes_fx.passes.report import LayerReport
from modes_fx.policy import SkipPolicy

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
    with gates_in_graph(model, policy, target) as codes, _logits_only(model, codes):
        program = _capture(model, inputs)
    program = program.run_decompositions({})
    layers = rewrite_program(program)
    check_layers(layers, allow_partial)
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
    positions_of = getattr(model.base_model, "get_rope_index", None)
    if "position_ids" not in given and kinds is not None and positions_of is not None:
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


@contextmanager
def _logits_only(model: PreTrainedModel, codes: CodesInGraph) -> Iterator[None]:
    """Have calls of a model compute the codes first, and return nothing but logits.

    transformers' output classes would be needed to load the program.
    """

    def compute_codes(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        codes.compute(kwargs["input_ids"], kwargs.get("attention_mask"))

    handles = (
        model.register_forward_pre_hook(compute_codes, with_kwargs=True),
        model.register_forward_hook(lambda module, args, output: output.logits),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _capture(model: PreTrainedModel, inputs: Inputs) -> ExportedProgram:
    with capturing(model, inputs):
        arguments, config = {**inputs, "use_cache": False}, DynamoConfig(dynamic=True)
        program, _ = DynamoExporter().export_program(model, arguments, config)
    return program
