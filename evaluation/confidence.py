"""How much chance there is in an accuracy, and in the difference of two on the same questions."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Return Wilson's interval at 95 % of a share of ``total >= 1`` trials; never beyond [0, 1]."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / total + spread / (4 * total)) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    scores: ArrayLike, other: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the difference of two mean scores on the same questions, and its interval at 95 %.

    Questions are drawn anew with replacement, the same ones for both, so what the two have in
    common does not widen the interval.

    Args:
        scores: numbers or bool [N], of each question by one method.
        other: likewise of the method that is subtracted.
        resamples: how many sets of questions are drawn.
        seed: of the drawing.
    """
    difference = np.asarray(scores, dtype=float) - np.asarray(other, dtype=float)
    values, counts = np.unique(difference, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(difference), counts / len(difference), size=resamples
    )
    means = drawn @ values / len(difference)
    tail = (1 - LEVEL) / 2
    lower, upper = np.quantile(means, [tail, 1 - tail])
    return float(difference.mean()), (float(lower), float(upper))
