"""What skipped experts put out on average: collected in one pass with the thresholds in force."""

from collections.abc import Mapping

import torch
from torch import Tensor

from modes_fx.attach import attached
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.request import Request
from modes_fx.compensation import collect_sums, collected_sums, drop_sums
from modes_fx.vocabulary import CALIBRATED

SHRINKAGE = 0.02
"""This part of an average expert's squared weights is added to each one's: the mean of an expert
that is hardly ever skipped is mostly chance, and shrinks to 0."""

Sizes = Mapping[str, tuple[int, int]]
"""(E, H) of the experts of each layer."""


def collect_means(
    evaluator: Evaluator, request: Request, sizes: Sizes, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the mean output of the pairs that a request skips, in the model as it then is.

    The mean of the skipped pairs, not of all: that of all is the mean of what large weights do, and
    adding it in place of pairs of small weight makes answers worse.

    Args:
        evaluator: inside its ``with`` block.
        request: what is skipped; its own means, if any, are in force meanwhile.
        sizes: of each layer.
        dtype: to store them in.

    Returns:
        ``{layer path: mu [C, E, H]}`` by modality code and expert, for ``Evaluator.add_means``.
    """
    shapes = {path: (len(CALIBRATED), *size) for path, size in sizes.items()}

    def begin() -> None:
        collect_sums(attached(evaluator.model), shapes)

    def read() -> dict[str, Tensor]:
        return collected_sums(attached(evaluator.model))

    sums = evaluator.collect("skipped outputs", request, read, begin)
    if evaluator.is_attached:
        drop_sums(attached(evaluator.model))
    return {path: _mean(total).to(dtype) for path, total in sums.items()}


def _mean(total: Tensor) -> Tensor:
    """Return ``[C, E, H]`` from the sums ``[C, E, H + 1]`` of w * y and of w**2."""
    outputs, squares = total[..., :-1], total[..., -1:]
    denominator = squares + SHRINKAGE * squares.mean(dim=1, keepdim=True)
    return torch.where(denominator > 0, outputs / denominator, 0.0)
