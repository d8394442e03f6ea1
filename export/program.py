"""From a model and a policy to an exported program whose experts are gated.

torch.export captures the model, with the repairs that transformers has for its own models; the
passes are those of the backend.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.exporters.exporter_dynamo import apply_patches

import modes_fx.hooks as h
from modes_fx.export.calls import PAST, THETA, Inputs, output_names
from modes_fx.export.errors import ExportError
from modes_fx.export.gates import (
    CodesInGraph,
    capturing,
    check_layers,
    gates_in_graph,
    rewrite_program,
)
from modes_fx.export.theta import check_tunable, read_rows
from modes_fx.passes.report import LayerReport
from modes_fx.policy import SkipPolicy

EXPERTS = torch.ops.modes_fx.experts.default
_OF_TOKENS = ("input_ids", "attention_mask")
_WRAPPED = "model."
"""What stands in front of the model's own names in a program."""


@dataclass(frozen=True)
class GatedProgram:
    """An exported program with gated experts.

    Attributes:
        program: takes tensors by name; returns logits and, where it has a cache, the longer cache.
            Batch, sequence and image size are dynamic, as far as the model's own code allows.
        layers: what became of each MoE layer.
        outputs: their names.
        target: whose thresholds are inside.
    """

    program: ExportedProgram
    layers: list[LayerReport]
    outputs: tuple[str, ...]
    target: float


def gated_program(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    inputs: Inputs,
    *,
    cached: bool = False,
    allow_partial: bool = False,
) -> GatedProgram:
    """Export a model with a policy's thresholds inside.

    Args:
        model: not attached; left as it was.
        policy: for this model.
        target: one of its targets.
        inputs: one call's tensors, of at least two samples and tokens: sizes of 1 become fixed.
            Tensors whose names begin with ``past_`` are a cache, keys and values in turn. With
            ``theta``, see ``modes_fx.export.thresholds``, the thresholds are an input.
        cached: whether the program returns the logits ``[B, 1, V]`` of the last token and a cache,
            instead of the logits ``[B, S, V]`` of all.
        allow_partial: whether layers that cannot be rewritten may stay as they are.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ExportError: the model is attached, cannot be captured, or has layers that are not
            rewritten; or its thresholds cannot be an input.
    """
    rows = list(policy.alpha) if THETA in inputs else []
    if rows:
        check_tunable(policy)
    with gates_in_graph(model, policy, target) as codes:
        program = _capture(_Call(model, cached, codes, inputs, rows), inputs)
    layers = rewrite_program(program, _WRAPPED, rows)
    check_layers(layers, allow_partial)
    returned = len(program.graph_signature.user_outputs)
    return GatedProgram(program, layers, output_names(returned), target)


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


def call_model(
    model: PreTrainedModel, inputs: Inputs, cached: bool, call: Any = None
) -> list[Tensor]:
    """Call a model as its programs are called.

    Args:
        model: to be called.
        inputs: as :func:`gated_program` takes them.
        cached: see there.
        call: what to call; by default the model.

    Returns:
        The tensors that a program returns.

    Raises:
        ExportError: its cache is not keys and values.
    """
    call = model if call is None else call
    if not cached:
        return [call(**inputs, use_cache=False, return_dict=True).logits]
    past = [value for name, value in inputs.items() if name.startswith(PAST)]
    others = {name: value for name, value in inputs.items() if not name.startswith(PAST)}
    kinds = DynamicCache(config=model.config.get_text_config()).layers
    if not all(isinstance(layer, DynamicLayer) for layer in kinds):
        raise ExportError(
            f"{type(model).__name__} keeps more than keys and values from token to token, and can "
            "be exported as text or image, without a cache"
        )
    # Of all tokens in every layer: what is cut to a window would have a size that depends on data.
    cache = DynamicCache(ddp_cache_data=zip(past[::2], past[1::2], strict=True))
    output = call(
        **others, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True
    )
    kept = [value for layer in cache.layers for value in (layer.keys, layer.values)]
    return [output.logits, *kept]


def gates(program: ExportedProgram) -> list[Node]:
    """Return the nodes that compute gated experts."""
    return [node for node in program.graph.nodes if node.target is EXPERTS]


@contextmanager
def keeping_every_expert(program: ExportedProgram) -> Iterator[None]:
    """Have a program hold thresholds that skip nothing but padding, for as long as this lasts."""
    own = {
        name: value
        for name, value in program.constants.items()
        if name.rpartition(".")[2] == h.THETA
    }
    program.constants.update(
        {name: h.keep_all_theta().to(value.device) for name, value in own.items()}
    )
    try:
        yield
    finally:
        program.constants.update(own)


class _Call(nn.Module):
    """A call of a model that takes tensors by name and returns tensors."""

    def __init__(
        self,
        model: PreTrainedModel,
        cached: bool,
        codes: CodesInGraph,
        names: Iterable[str],
        rows: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = model

        def forward(**inputs: Tensor) -> list[Tensor]:
            codes.compute(inputs["input_ids"], inputs.get("attention_mask"))
            theta = inputs.pop(THETA, torch.empty(0))
            with read_rows(codes.layers, rows, theta):
                # Not by a call: the model's own hooks read the modality where no graph can hold it.
                return call_model(model, inputs, cached, model.forward)

        # torch.export looks sizes up by the names of parameters.
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def _capture(call: _Call, inputs: Inputs) -> ExportedProgram:
    with capturing(call.model, inputs), torch.no_grad(), apply_patches("dynamo"):
        try:
            program = _export(call, inputs, image_sizes=True)
        except Exception:  # a model's code may fail in any way where values are symbols
            if not any(_is_image(name, value) for name, value in inputs.items()):
                raise
            # Such code asks whether sizes divide; how many images there are may still differ.
            program = _export(call, inputs, image_sizes=False)
        return program.run_decompositions({})


def _export(call: _Call, inputs: Inputs, *, image_sizes: bool) -> ExportedProgram:
    sizes = {name: _dynamic(name, value, image_sizes) for name, value in inputs.items()}
    return torch.export.export(call, (), dict(inputs), dynamic_shapes=sizes, strict=False)


def _dynamic(name: str, value: Tensor, image_sizes: bool) -> Mapping[int, Any]:
    """Return the axes of an input that may have other sizes in another call."""
    if name == THETA:
        axes = []
    elif name.startswith(PAST):
        axes = [0, value.dim() - 2]
    elif name in _OF_TOKENS:
        axes = [0, 1]
    elif name == "position_ids":
        axes = [value.dim() - 2, value.dim() - 1]
    elif value.is_floating_point():
        axes = list(range(1 if _is_image(name, value) and not image_sizes else value.dim()))
    else:
        axes = []  # numbers and grids of images: code that reads them depends on how many
    return dict.fromkeys([axis for axis in axes if value.shape[axis] > 1], Dim.AUTO)


def _is_image(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() > 2 and not name.startswith(PAST)
