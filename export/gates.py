"""Gates in exported programs: where a call's modality and thresholds come from.

Thresholds are buffers of a program, under the path of their layer. The modality of each token is
computed in the graph, because nothing runs before it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from transformers import PreTrainedModel

import modes_fx.hooks as h
from modes_fx.attach import attach, attached, detach, is_attached
from modes_fx.export.calls import Inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.theta import row_names
from modes_fx.modality import DeviceCodes, ModalityBuffer, TokenIds, modality_codes
from modes_fx.passes.pipeline import rewrite_graph
from modes_fx.passes.report import LayerReport
from modes_fx.policy import SkipPolicy


class CodesInGraph(ModalityBuffer):
    """Stands in for the modality buffer while a model is captured.

    Attributes:
        layers: that are attached, by path.
    """

    def __init__(self, token_ids: TokenIds) -> None:
        """Hold no codes yet.

        Args:
            token_ids: what tells a token's modality.
        """
        super().__init__((), 0)
        self.layers: Mapping[str, nn.Module] = {}
        self._token_ids = token_ids
        self._codes: DeviceCodes | None = None

    def compute(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Compute the codes of a call's tokens ``[B, S]``, in the graph."""
        found = modality_codes(self._token_ids, input_ids, attention_mask=attention_mask)
        count = torch.full((1,), found.shape[0], dtype=torch.int64, device=found.device)
        self._codes = DeviceCodes(found, count)

    def on(self, device: torch.device) -> DeviceCodes:
        """Return the codes.

        Raises:
            RuntimeError: they were not computed yet.
        """
        if self._codes is None:
            raise RuntimeError("a layer ran before the modality of the call's tokens was computed")
        return self._codes


@contextmanager
def gates_in_graph(
    model: PreTrainedModel, policy: SkipPolicy, target: float
) -> Iterator[CodesInGraph]:
    """Attach a policy so that a call can be captured as a whole; detach it afterwards.

    The caller computes the codes before the layers run.

    Args:
        model: not attached.
        policy: for this model.
        target: one of its targets.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ExportError: the model is attached, or has an encoder and a decoder.
    """
    if is_attached(model):
        raise ExportError("the model is attached: call modes_fx.detach(model) before exporting it")
    attach(model, policy, target=target)
    try:
        attachment = attached(model)
        if attachment.decoder_modality is not None:
            raise ExportError("models with an encoder and a decoder cannot be exported yet")
        special = policy.special_token_ids if policy.special_tokens == "keep" else ()
        codes = CodesInGraph(TokenIds.from_config(model.config, special))
        codes.layers = attachment.layers
        for layer in attachment.layers.values():
            gate: h.GateOptions = getattr(layer, h.GATE)
            if gate.modality is attachment.modality:
                setattr(layer, h.GATE, replace(gate, modality=codes))
        for _ in range(2):  # what reads the modality outside the graph
            attachment.handles.pop().remove()
        with quiet():
            yield codes
    finally:
        detach(model)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what an attached model says when it runs uncompiled, as it does to be exported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a skipping policy is attached, but this call")
        yield


@contextmanager
def capturing(model: PreTrainedModel, inputs: Inputs) -> Iterator[None]:
    """Say of a model that torch cannot capture that it cannot be exported.

    Raises:
        ExportError: there are no ``input_ids``, which the modality of tokens comes from, or
            anything was raised inside.
    """
    if "input_ids" not in inputs:
        raise ExportError("the modality of tokens comes from input_ids, and there are none")
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # a model's code may fail in any way where values are symbols
        raise ExportError(
            f"{type(model).__name__} cannot be captured by torch.export with "
            f"{', '.join(inputs)}: {str(error).strip().splitlines()[0]}"
        ) from error


def rewrite_program(
    program: ExportedProgram, prefix: str = "", rows: Sequence[str] = ()
) -> list[LayerReport]:
    """Rewrite the regions of a program by the passes of the backend.

    Args:
        program: decomposed into functional operators, of a model in :func:`gates_in_graph`;
            changed in place.
        prefix: what stands in front of the model's own names in it.
        rows: the path of the layer of each row of its input ``theta``, where it has one.

    Returns:
        What became of each MoE layer.
    """
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
        value = stored.get(spec.target) if spec.target is not None else None
        if spec.target is None or not isinstance(value, Tensor):
            continue
        owner, _, last = spec.target.removeprefix(prefix).rpartition(".")
        values[node] = value
        names[node] = f"{owner}.theta" if last == h.THETA else f"{owner}.{last}"
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "guarded"}
    names.update(row_names(program, rows))
    layers = rewrite_graph(module, values, names)
    describe_new_nodes(module.graph)
    program.validate()
    return layers


def check_layers(layers: Sequence[LayerReport], allow_partial: bool) -> None:
    """Check that all layers are gated, or at least one where some may compute every expert.

    Raises:
        ExportError: they are not; names the first one and why.
    """
    left = [layer for layer in layers if layer.status != "rewritten" or not layer.gated]
    if len(left) == len(layers) or (left and not allow_partial):
        first = f"{left[0].path or '(unnamed)'}: {left[0].reason}" if left else "none was found"
        raise ExportError(
            f"{len(left)} of {len(layers)} MoE layers were not rewritten, and would compute "
            f"every expert; the first is {first}. Export with --allow-partial (allow_partial=True) "
            "to have the others gated"
        )


def describe_new_nodes(graph: Graph) -> None:
    """Give nodes that have none a value like the one they compute, for those that read it."""
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
            node.meta["val"] = node.target(*args, **kwargs)
