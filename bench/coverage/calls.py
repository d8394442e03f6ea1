"""One prefill and some decode steps of any model, original, oracle or compiled."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.modeling_outputs import MoeModelOutputWithPast

from modes_fx.bench.coverage.inputs import Inputs

CACHE_LENGTH = 192

Call = Callable[[int, dict[str, Any]], Any]
"""Takes the number of a call, 0 the prefill, and its arguments; returns the model's output."""


def converse(model: nn.Module, call: Call, inputs: Inputs, *, static: bool) -> list[Tensor]:
    """Make a prefill and, where the model returns a cache, the decode steps.

    Args:
        model: the model behind ``call``; tells which arguments it takes.
        call: makes one call.
        inputs: what is said.
        static: hand over a static cache, instead of letting the model make its own.

    Returns:
        The logits of each call.
    """
    parameters = inspect.signature(model.forward).parameters
    keeping: dict[str, Any] = {"use_cache": True} if "use_cache" in parameters else {}
    cache = {"past_key_values": _static_cache(model)} if static else {}
    with torch.no_grad():
        output = call(0, {**inputs.prefill, **keeping, **cache})
        logits = [output.logits]
        encoded = _encoded(output, inputs)
        token = "decoder_input_ids" if "decoder_input_ids" in parameters else "input_ids"
        for number, step in enumerate(inputs.steps, start=1):
            past = getattr(output, "past_key_values", None)
            if past is None:
                break
            output = call(number, {token: step, **encoded, **keeping, "past_key_values": past})
            logits.append(output.logits)
    return logits


def _static_cache(model: Any) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(), max_cache_len=CACHE_LENGTH)


def _encoded(output: Any, inputs: Inputs) -> dict[str, Any]:
    state = getattr(output, "encoder_last_hidden_state", None)
    if state is None:
        return {}
    mask = inputs.prefill["attention_mask"]
    encoded = MoeModelOutputWithPast(last_hidden_state=state)
    return {"encoder_outputs": encoded, "attention_mask": mask}


def distance(expected: Tensor, actual: Tensor) -> float:
    """Return the largest absolute difference, as a fraction of the largest expected value."""
    if expected.shape != actual.shape:
        return float("inf")
    error = float((expected - actual).abs().max() / expected.abs().max())
    return error if error == error else float("inf")
