"""A model as the two programs that generate text: prefill and one decode step, with a cache.

Prefill holds the vision tower, the embedding and the merge of both as well. The cache goes from
program to program as plain tensors. Thresholds are constants of the programs, and each token's
modality is computed inside from ``input_ids``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import DynamicCache, PreTrainedModel
from transformers.exporters.exporter_dynamo import apply_patches

from modes_fx.attach import is_attached
from modes_fx.export.errors import ExportError
from modes_fx.export.gates import (
    CodesInGraph,
    Inputs,
    capturing,
    check_layers,
    gates_in_graph,
    rewrite_program,
)
from modes_fx.export.program import exportable_inputs
from modes_fx.export.runner import DECODE, PREFILL, Interface, next_positions, text_positions
from modes_fx.passes.report import LayerReport
from modes_fx.policy import SkipPolicy

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
    with gates_in_graph(model, policy, target) as codes:
        gated = _Step(model, codes)
        prefill = _capture(gated, PREFILL, prompt, [])
        decode = _capture(gated, DECODE, step, first[1])
    layers = {
        PREFILL: rewrite_program(prefill, _WRAPPED),
        DECODE: rewrite_program(decode, _WRAPPED),
    }
    for component, reports in layers.items():
        check_layers(reports, allow_partial, component)
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
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    given = exportable_inputs(model, {**inputs, "attention_mask": mask})
    given.setdefault("position_ids", text_positions(mask))
    return given


class _Step(nn.Module):
    """A call of a model with its cache as plain tensors."""

    def __init__(self, model: PreTrainedModel, codes: CodesInGraph | None = None) -> None:
        super().__init__()
        self.model, self._codes = model, codes

    def forward(
        self, inputs: dict[str, Tensor], cache: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        if self._codes is not None:
            self._codes.compute(inputs["input_ids"], inputs["attention_mask"])
        pairs = list(zip(cache[::2], cache[1::2], strict=True)) or None
        past = DynamicCache(ddp_cache_data=pairs, config=self.model.config.get_text_config())
        # Not by a call: the model's own hooks read the modality where no graph can hold them.
        output = self.model.forward(
            **inputs, past_key_values=past, use_cache=True, logits_to_keep=1, return_dict=True
        )
        kept = [value for layer in past.layers for value in (layer.keys, layer.values)]
        return output.logits, kept


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
    with capturing(step.model, inputs, component), torch.no_grad(), apply_patches("dynamo"):
        arguments = (dict(inputs), cache)
        program = torch.export.export(step, arguments, dynamic_shapes=sizes, strict=False)
        return program.run_decompositions({})


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
