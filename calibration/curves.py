"""Where to look for tau: for each modality, a curve from [0, 1] (skip nothing, skip all) to tau."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from modes_fx.calibration.pairs import Shares
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import ModalityName

Curve = Callable[[float], float]

_RELEASE_RANGE: Mapping[ModalityName, float] = {"text": 0.71, "vision": 0.6}


def quantile_curves(
    shares: Shares, policy: SkipPolicy, modalities: Iterable[ModalityName]
) -> dict[ModalityName, Curve]:
    """Return curves on which even steps skip about even numbers of pairs.

    ``tau(u)`` lies between two values of alpha**exponent * share as they were observed in the full
    model, with a fraction ``u`` below it. Skipping changes later layers' shares a little, so the
    skip ratio is still to be measured.

    Args:
        shares: as ``recorded_shares`` collects them.
        policy: holds alpha.
        modalities: those to make curves for.
    """

    def scale(alpha: float) -> float:
        return alpha**policy.alpha_exponent if alpha else 0.0

    def products(name: ModalityName) -> Tensor:
        return torch.cat(
            [
                share[name].double() * scale(policy.alpha[path][name])
                for path, share in shares.items()
            ]
        )

    return {name: quantile_curve(products(name)) for name in modalities}


def quantile_curve(products: Tensor) -> Curve:
    """Return the curve along which the given values, float64 ``[pairs]``, fall evenly.

    It is 0 at 0 and above the largest value at 1.
    """
    ordered = products.sort().values
    largest = float(ordered[-1])
    if largest == 0:
        return lambda u: float(u > 0)
    # Where alpha is 0 a pair is skipped at any tau > 0, so the least tau of use is below the rest.
    least = float(ordered[torch.searchsorted(ordered, 0.0, right=True)]) / 2

    def curve(u: float) -> float:
        below = round(u * len(ordered))
        if below == 0:
            return 0.0
        if below == len(ordered):
            return 2 * largest
        return max(least, float(ordered[below - 1] + ordered[below]) / 2)

    return curve


def release_curves(modalities: Iterable[ModalityName]) -> dict[ModalityName, Curve]:
    """Return the curves of the method's released code, whatever the model.

    They assume alphas that sum to 1 over about as many layers as its models have, and need not
    reach a high target.

    Raises:
        ValueError: a modality that the released code does not know.
    """
    if unknown := set(modalities) - _RELEASE_RANGE.keys():
        raise ValueError(f"the released code has no grid for {', '.join(sorted(unknown))}")

    def curve(last: float) -> Curve:
        return lambda u: 2 / (1 + math.exp(-10 * (u * last - 1)))

    return {name: curve(_RELEASE_RANGE[name]) for name in modalities}
