"""What an artifact is compared with: the model itself, run by transformers' code."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.attach import attach, detach
from modes_fx.backend import modes_backend
from modes_fx.export.calls import THETA, Inputs
from modes_fx.export.formats import Loaded
from modes_fx.export.program import call_model
from modes_fx.export.theta import thresholds
from modes_fx.policy import SkipPolicy


def gated_outputs(
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float | None,
    inputs: Inputs,
    *,
    cached: bool,
) -> list[Tensor]:
    """Return what a model that skips by a policy gives: logits and, if ``cached``, its cache.

    With the target None it keeps every expert.

    It runs through the backend without inductor: every region is compared there with the model's
    own experts, with the weights of skipped pairs set to zero, before it is used.

    Raises:
        MatchError: a layer cannot be rewritten.
    """
    attach(model, None if target is None else policy, target=target)
    try:
        compiled = torch.compile(model, backend=modes_backend, options={"compiler": "eager"})
        with torch.inference_mode():
            return call_model(model, inputs, cached, compiled)
    finally:
        detach(model)


def with_thresholds(
    loaded: Loaded, policy: SkipPolicy, target: float | None, inputs: Inputs
) -> list[Tensor]:
    """Call a component that takes thresholds with those of a target; None keeps every expert."""
    theta = thresholds(policy, target).to(inputs["input_ids"].device)
    return loaded({**inputs, THETA: theta})


def artifact_error(
    loaded: Loaded,
    model: PreTrainedModel,
    policy: SkipPolicy,
    target: float,
    inputs: Inputs,
    *,
    cached: bool,
) -> float:
    """Return how far a component is from its model; see :func:`largest_error`.

    One that takes thresholds is compared with every expert kept as well, so that an artifact in
    which they have no effect is noticed.
    """
    mask = inputs.get("attention_mask")
    given = {name: value for name, value in inputs.items() if name != THETA}
    expected = gated_outputs(model, policy, target, given, cached=cached)
    error = largest_error(loaded(inputs), expected, mask)
    if THETA not in inputs:
        return error
    whole = gated_outputs(model, policy, None, given, cached=cached)
    return max(error, largest_error(with_thresholds(loaded, policy, None, inputs), whole, mask))


def largest_error(
    outputs: Sequence[Tensor], expected: Sequence[Tensor], mask: Tensor | None
) -> float:
    """Return the largest difference of any output, as a share of that output's largest value.

    Args:
        outputs: from the artifact: logits ``[B, S, V]``, then keys and values ``[B, ., S, .]``.
        expected: from the model.
        mask: ``[B, S]``, 0 for padding on the left, which is left out; None: there is none.

    Returns:
        infinity where numbers or shapes of outputs differ or a value is no number.
    """
    if [out.shape for out in outputs] != [out.shape for out in expected]:
        return torch.inf
    return max(_error(*pair, mask) for pair in zip(outputs, expected, strict=True))


def _error(output: Tensor, expected: Tensor, mask: Tensor | None) -> float:
    got, wanted = (
        value.transpose(1, 2) if value.dim() == 4 else value for value in (output, expected)
    )
    if mask is not None:
        kept = mask[:, -got.shape[1] :].bool()
        got, wanted = got[kept], wanted[kept]
    error = float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())
    return error if error == error else torch.inf
