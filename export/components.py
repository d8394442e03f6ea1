"""A model as the two programs that generate text: prefill and one decode step, with a cache.

Prefill holds the vision tower, the embedding and the merge of both as well. The cache goes from
program to program as plain tensors. Thresholds are constants of the programs, and each token's
modality is computed inside from ``input_ids``.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from transformers import DynamicCache, PreTrainedModel
from transformers.exporters.exporter_dynamo import apply_patches

import modes_fx.hooks as h
from modes_fx.attach import attach, attached, detach, is_attached
from modes_fx.export.errors import ExportError
from modes_fx.export.runner import DECODE, PREFILL, Interface, next_positions, text_positions
from modes_fx.modality import DeviceCodes, TokenIds, modality_codes
from modes_fx.passes.pipeline import rewrite_graph
from modes_fx.passes.report import LayerReport
from modes_fx.policy import SkipPolicy

Inputs = Mapping[str, Tensor]

_WRAPPED = "model."
"""What stands in front of the model's own names in a program."""


@dataclass(frozen=True)
class Components:
    """The programs of one model.

    Attributes:
        prefill: takes a call's tensors by name; returns the logits ``[B, 1, V]`` that follow the
            prompt, and the cache: keys and values ``[B, heads, S, D]`` of each layer in turn.
        decode: takes ``input_ids`` ``[B, 1]``, ``attention_mask`` ``[B, S + 1]``, ``position_ids``
            and a cache; returns logits ``[B, 1, V]`` and the longer cache.
        interface: what prefill takes.
        layers: what became of each MoE layer, by component.
    """

    prefill: ExportedProgram
    decode: ExportedProgram
    interface: Interface
    layers: Mapping[str, list[LayerReport]]

    def save(self, folder: Path) -> None:
        """Write what ``modes_fx.export.runner.Runner`` loads into a folder."""
        torch.export.save(self.prefill, folder / PREFILL)
        torch.export.save(self.decode, folder / DECODE)
        self.interface.save(folder)


def export_components(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    inputs: Inputs,
    *,
    allow_partial: bool = False,
) -> Components:
    """Export what generates text, with a policy's thresholds inside.

    Args:
        model: not attached; left as it was.
        policy: for this model.
        target: one of its targets.
        inputs: a prompt's tensors as the processor returns them, of two samples or more: a batch
            of 1 becomes fixed. How many images a call has is fixed as well, their size is not.
        allow_partial: whether layers that cannot be rewritten may compute every expert.

    Raises:
        PolicyError: the policy is for another model, or has no such target.
        ExportError: the model is attached, cannot be captured, or has layers that are not
            rewritten.
    """
    if is_attached(model):
        raise ExportError("the model is attached: call modes_fx.detach(model) before exporting it")
    prompt = prompt_inputs(model, inputs)
    with torch.no_grad():
        first = _Step(model)(prompt, [])
    step = _step_inputs(prompt, *first)
    with _gates_in_graph(model, policy, target) as gated:
        prefill = _capture(gated, PREFILL, prompt, [])
        decode = _capture(gated, DECODE, step, first[1])
    layers = {PREFILL: _rewrite(prefill), DECODE: _rewrite(decode)}
    for component, reports in layers.items():
        _check_layers(component, reports, allow_partial)
    return Components(prefill, decode, _interface(prompt), layers)


def prompt_inputs(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """Return a prompt's inputs as prefill takes them, with the position of each token.

    Args:
        model: whose inputs these are. One that derives positions from the kinds of tokens does so
            with code that depends on data, which no graph can hold, so it is called here.
        inputs: as its processor returns them.

    Raises:
        ExportError: there are no ``input_ids``, which the modality of tokens comes from.
    """
    if "input_ids" not in inputs:
        raise ExportError("the modality of tokens comes from input_ids, and there are none")
    given = dict(inputs)
    kinds = given.pop("mm_token_type_ids", None)
    mask = given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
    positions_of = getattr(model.base_model, "get_rope_index", None)
    if "position_ids" not in given and kinds is not None and positions_of is not None:
        grids = {name: value for name, value in given.items() if name.endswith("_grid_thw")}
        given["position_ids"], _ = positions_of(
            given["input_ids"], mm_token_type_ids=kinds, attention_mask=mask, **grids
        )
    given.setdefault("position_ids", text_positions(mask))
    return given


class _CodesInGraph:
    """Stands in for the modality buffer while a model is captured."""

    def __init__(self) -> None:
        self.codes: DeviceCodes | None = None

    def on(self, device: torch.device) -> DeviceCodes:
        if self.codes is None:
            raise RuntimeError("a layer ran before the modality of the call's tokens was computed")
        return self.codes


class _Step(nn.Module):
    """A call of a model with its cache as plain tensors."""

    def __init__(
        self,
        model: PreTrainedModel,
        token_ids: TokenIds | None = None,
        codes: _CodesInGraph | None = None,
    ) -> None:
        super().__init__()
        self.model, self._token_ids, self._codes = model, token_ids, codes

    def forward(
        self, inputs: dict[str, Tensor], cache: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        if self._codes is not None and self._token_ids is not None:
            mask = inputs["attention_mask"]
            found = modality_codes(self._token_ids, inputs["input_ids"], attention_mask=mask)
            count = torch.full((1,), found.shape[0], dtype=torch.int64, device=found.device)
            self._codes.codes = DeviceCodes(found, count)
        pairs = list(zip(cache[::2], cache[1::2], strict=True)) or None
        past = DynamicCache(ddp_cache_data=pairs, config=self.model.config.get_text_config())
        # Not by a call: the model's own hooks read the modality where no graph can hold them.
        output = self.model.forward(
            **inputs, past_key_values=past, use_cache=True, logits_to_keep=1, return_dict=True
        )
        kept = [value for layer in past.layers for value in (layer.keys, layer.values)]
        return output.logits, kept


@contextmanager
def _gates_in_graph(model: PreTrainedModel, policy: SkipPolicy, target: float) -> Iterator[_Step]:
    """Give a step of a model that computes the modality of its tokens in the graph."""
    attach(model, policy, target=target)
    try:
        attachment = attached(model)
        if attachment.decoder_modality is not None:
            raise ExportError("models with an encoder and a decoder cannot be exported yet")
        codes = _CodesInGraph()
        for layer in attachment.layers.values():
            gate: h.GateOptions = getattr(layer, h.GATE)
            if gate.modality is attachment.modality:
                setattr(layer, h.GATE, replace(gate, modality=codes))  # type: ignore[arg-type]
        special = policy.special_token_ids if policy.special_tokens == "keep" else ()
        yield _Step(model, TokenIds.from_config(model.config, special), codes)
    finally:
        detach(model)


def _step_inputs(prompt: Inputs, logits: Tensor, cache: list[Tensor]) -> dict[str, Tensor]:
    token = logits[:, -1:].argmax(-1)
    mask = torch.cat([prompt["attention_mask"], torch.ones_like(token)], dim=1)
    positions = next_positions(prompt["position_ids"])
    return {"input_ids": token, "attention_mask": mask, "position_ids": positions}


def _capture(step: _Step, component: str, inputs: Inputs, cache: list[Tensor]) -> ExportedProgram:
    sizes = (
        {name: _dynamic(name, value) for name, value in inputs.items()},
        [{0: Dim.AUTO, 2: Dim.AUTO} for _ in cache],
    )
    try:
        with torch.no_grad(), apply_patches("dynamo"), _quiet():
            arguments = (dict(inputs), cache)
            program = torch.export.export(step, arguments, dynamic_shapes=sizes, strict=False)
            return program.run_decompositions({})
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{component}: {type(step.model).__name__} cannot be captured by torch.export with "
            f"{', '.join(inputs)}: {str(error).strip().splitlines()[0]}"
        ) from error


def _dynamic(name: str, value: Tensor) -> dict[int, Any]:
    """Return the axes of an input that may have other sizes in another call."""
    if name in ("input_ids", "attention_mask"):
        axes = [axis for axis in (0, 1) if value.shape[axis] > 1]
    elif name == "position_ids":
        axes = [axis for axis in (value.dim() - 2, value.dim() - 1) if value.shape[axis] > 1]
    elif value.is_floating_point():
        axes = [axis for axis in range(value.dim()) if value.shape[axis] > 1]
    else:
        axes = []  # numbers and grids of images: code that reads them depends on how many
    return dict.fromkeys(axes, Dim.AUTO)


def _interface(prompt: Inputs) -> Interface:
    fixed = {
        name: list(value.shape)
        for name, value in prompt.items()
        if value.dim() and not _dynamic(name, value)
    }
    batch = prompt["input_ids"].shape[0]
    axes = prompt["position_ids"].shape[0] if prompt["position_ids"].dim() == 3 else 0
    return Interface(
        inputs=list(prompt), fixed=fixed, batch=1 if batch == 1 else None, position_axes=axes
    )


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
        value = stored.get(spec.target) if spec.target is not None else None
        if spec.target is None or not isinstance(value, Tensor):
            continue
        owner, _, last = spec.target.removeprefix(_WRAPPED).rpartition(".")
        values[node] = value
        names[node] = f"{owner}.theta" if last == h.THETA else f"{owner}.{last}"
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


def _check_layers(component: str, layers: list[LayerReport], allow_partial: bool) -> None:
    left = [layer for layer in layers if layer.status != "rewritten" or not layer.gated]
    if len(left) == len(layers) or (left and not allow_partial):
        first = f"{left[0].path or '(unnamed)'}: {left[0].reason}" if left else "none was found"
        raise ExportError(
            f"{component}: {len(left)} of {len(layers)} MoE layers were not rewritten, and would "
            f"compute every expert; the first is {first}. allow_partial=True gates the others"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what an attached model says when it runs uncompiled, as it does to be exported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a skipping policy is attached, but this call")
        yield
