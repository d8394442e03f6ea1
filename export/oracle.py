"""What an artifact is compared with: the model itself, run by transformers' code."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.attach import attach, detach
from modes_fx.backend import modes_backend
from modes_fx.export.calls import Inputs
from modes_fx.export.program import call_model
from modes_fx.policy import SkipPolicy


def gated_outputs(
    model: PreTrainedModel, policy: SkipPolicy, target: float, inputs: Inputs, *, cached: bool
) -> list[Tensor]:
    """Return what a model that skips by a policy gives: logits and, if ``cached``, its cache.

    It runs through the backend without inductor: every region is compared there with the model's
    own experts, with the weights of skipped pairs set to zero, before it is used.

    Raises:
        MatchError: a layer cannot be rewritten.
    """
    attach(model, policy, target=target)
    try:
        compiled = torch.compile(model, backend=modes_backend, options={"compiler": "eager"})
        with torch.inference_mode():
            return call_model(model, inputs, cached, compiled)
    finally:
        detach(model)


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
