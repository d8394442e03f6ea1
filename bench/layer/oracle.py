"""What the experts should give: the model's own code in float32, skipped pairs weighing zero."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from modes_fx.bench.layer.calls import Call
from modes_fx.bench.layer.weights import Layer

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-5}
"""The largest error by dtype of weights and tokens; transformers' own code stays below it."""


class _InFloat32:
    """A stack of experts' weights that gives the weights of one expert in float32.

    The model's loop takes one expert at a time, so the whole layer is never held in float32.
    """

    def __init__(self, stack: Tensor) -> None:
        self._stack = stack

    def __getitem__(self, expert: Any) -> Tensor:
        return self._stack[expert].float()


def expected(layer: Layer, call: Call) -> Tensor:
    """Return ``[T, H]`` float32: the model's own loop over experts on a call."""
    module = copy.copy(layer.copies[call.copy])
    own: dict[str, Any] = dict(module.named_parameters())
    module._parameters = {}
    for name, stack in own.items():
        object.__setattr__(module, name, _InFloat32(stack))
    out: Tensor = nn.Module.__call__(module, call.x.float(), call.index, call.kept_weight.float())
    return out


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Return the error of the worst token, relative to its result or a typical one, if larger.

    Args:
        actual: ``[T, H]``.
        expected: ``[T, H]`` float32.

    Returns:
        max over t of |actual_t - expected_t| / max(|expected_t|, root mean square of |expected|),
        with Euclidean norms; infinite where a shape differs or a value is not a number.
    """
    if actual.shape != expected.shape:
        return float("inf")
    norm = expected.norm(dim=-1)
    typical = norm.square().mean().sqrt()
    scale = torch.maximum(norm, typical) if typical > 0 else torch.ones_like(norm)
    error = float(((actual.float() - expected).norm(dim=-1) / scale).max())
    return error if error == error else float("inf")
