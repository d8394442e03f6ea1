"""What an artifact is compared with: the model itself, run by transformers' code."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.attach import attach, detach
from modes_fx.backend import modes_backend
from modes_fx.policy import SkipPolicy


def gated_logits(
    model: PreTrainedModel, policy: SkipPolicy, target: float, inputs: Mapping[str, Tensor]
) -> Tensor:
    """Return the logits ``[B, S, V]`` of a model that skips by a policy.

    It runs through the backend without inductor: every region is compared there with the model's
    own experts, with the weights of skipped pairs set to zero, before it is used.

    Raises:
        MatchError: a layer cannot be rewritten.
    """
    attach(model, policy, target=target)
    try:
        compiled = torch.compile(model, backend=modes_backend, options={"compiler": "eager"})
        with torch.inference_mode():
            logits: Tensor = compiled(**inputs, use_cache=False).logits
    finally:
        detach(model)
    return logits


def largest_error(logits: Tensor, expected: Tensor, mask: Tensor | None) -> float:
    """Return the largest difference of two ``[B, S, V]`` logits, as a share of the largest logit.

    Args:
        logits: from the artifact.
        expected: from the model.
        mask: ``[B, S]``, 0 for padding, which is left out; None: there is none.

    Returns:
        infinity where the shapes differ or a logit is no number.
    """
    if logits.shape != expected.shape:
        return torch.inf
    kept = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    got, wanted = logits[kept].float(), expected[kept].float()
    error = float((got - wanted).abs().max() / wanted.abs().max())
    return error if error == error else torch.inf
