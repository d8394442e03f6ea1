"""When two outputs count as the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from modes_fx.passes.region import NoMatchError

FP32_TOLERANCE = 1e-5
"""Largest error allowed, as a fraction of the largest output."""

ROUNDING_MARGIN = 1.25
"""In low precision: how much further from a float32 run the rewrite may be than the original."""

CROWD = 512
"""How many tokens are sent to the same experts, to see whether some are dropped there."""


def check_agreement(
    original: Tensor, rewritten: Tensor, exact: Callable[[], Tensor], when: str
) -> float:
    """Check that a rewrite gives what the original gives.

    Args:
        original: what the model's own code computed.
        rewritten: what the rewrite computed.
        exact: computes the same in float32; asked for in low precision, where the two round apart.
        when: completes the sentence '... relative error 0.1 with'.

    Returns:
        The largest absolute difference, as a fraction of the largest output.

    Raises:
        NoMatchError: it does not.
    """
    for name in ("shape", "dtype"):
        wanted, given = getattr(original, name), getattr(rewritten, name)
        if given != wanted:
            raise NoMatchError(f"its rewrite gives the {name} {given}, not {wanted}")
    error = _relative_error(original, rewritten)
    if error > FP32_TOLERANCE and not _rounds_alike(original, rewritten, exact):
        raise NoMatchError(
            f"its rewrite gives other numbers: relative error {error:.2e} with {when}"
        )
    return error


def _rounds_alike(original: Tensor, rewritten: Tensor, exact: Callable[[], Tensor]) -> bool:
    if original.dtype not in (torch.bfloat16, torch.float16):
        return False
    truth = exact()
    distance = [(value.float() - truth).norm() for value in (original, rewritten)]
    return bool(distance[1] <= ROUNDING_MARGIN * distance[0])


def _relative_error(original: Tensor, rewritten: Tensor) -> float:
    difference = (original.float() - rewritten.float()).abs().max()
    scale = original.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = float(difference / scale)
    return error if error == error else float("inf")
