"""What a model's components take in a call."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.export.calls import PREFILL, Inputs, is_cached, step_inputs, text_positions
from modes_fx.export.errors import ExportError
from modes_fx.export.program import call_model, exportable_inputs


def component_inputs(model: PreTrainedModel, component: str, inputs: Inputs) -> dict[str, Tensor]:
    """Return what a component takes in a call.

    Args:
        model: whose inputs these are, not attached.
        component: a name of ``modes_fx.export.calls.COMPONENTS``.
        inputs: a prompt as its processor returns it. For ``decode`` the model reads it first, and
            its likeliest token is what comes next.

    Raises:
        ExportError: there are no ``input_ids``, which the modality of tokens comes from.
    """
    if not is_cached(component):
        return exportable_inputs(model, inputs)
    prompt = prompt_inputs(model, inputs)
    if component == PREFILL:
        return prompt
    with torch.no_grad():
        logits, *cache = call_model(model, prompt, cached=True)
    return step_inputs(prompt, logits[:, -1:].argmax(-1), cache)


def prompt_inputs(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """Return a prompt's inputs as ``prefill`` takes them, with the position of each token.

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
