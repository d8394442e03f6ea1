"""Thresholds of single layers, as the fractions of the full model's pairs below them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modes_fx.calibration.curves import quantile_curve
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.pairs import Shares
from modes_fx.calibration.plane import Extras, request_of
from modes_fx.calibration.reach import reach
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import CALIBRATED, ModalityName

Slot = tuple[str, ModalityName]
"""A layer's pairs of one modality."""

WIDEST = 6.0
"""Fractions are shifted by at most so much on the logit scale."""


@dataclass(frozen=True)
class Fractions:
    """Which fraction of the full model's pairs of each layer and modality is below the threshold.

    Attributes:
        values: by slot, between 0 and 1; a fixed threshold of +inf is None.
        shares: the full model's, ascending, float64 by slot.
    """

    values: Mapping[Slot, float | None]
    shares: Mapping[Slot, Tensor]

    @staticmethod
    def of(
        thetas: Mapping[str, Tensor], shares: Shares, modalities: Sequence[ModalityName]
    ) -> "Fractions":
        """Return the fractions that thresholds stand for."""
        ordered = {
            (path, name): share[name].double().sort().values
            for path, share in shares.items()
            for name in modalities
        }
        values: dict[Slot, float | None] = {}
        for (path, name), share in ordered.items():
            theta = float(thetas[path][CALIBRATED[name]])
            below = int(torch.searchsorted(share, theta)) if theta > -math.inf else 0
            values[path, name] = None if theta == math.inf else below / len(share)
        return Fractions(values, ordered)

    @property
    def skipped(self) -> float:
        """The fraction of all pairs that is skipped, before skipping changes later layers."""
        sizes = {slot: len(share) for slot, share in self.shares.items()}
        skipped = sum((1.0 if (v := self.values[s]) is None else v) * n for s, n in sizes.items())
        return skipped / sum(sizes.values())

    def moved(self, slot: Slot, to: float) -> "Fractions":
        """Return them with one slot changed and all others shifted so that as much is skipped."""
        pinned = Fractions({**self.values, slot: to}, self.shares)
        low, high = -WIDEST, WIDEST
        for _ in range(40):
            middle = (low + high) / 2
            more = pinned.shifted(middle, but=slot).skipped < self.skipped
            low, high = (middle, high) if more else (low, middle)
        return pinned.shifted((low + high) / 2, but=slot)

    def shifted(self, shift: float, but: Slot | None = None) -> "Fractions":
        """Return them with all slots but one moved by as much on the logit scale."""
        values = {
            slot: value if value is None or slot == but else _shifted(value, shift)
            for slot, value in self.values.items()
        }
        return Fractions(values, self.shares)

    def thetas(self) -> dict[str, Tensor]:
        """Return the thresholds float32 ``[M]`` by layer."""
        thetas: dict[str, Tensor] = {}
        for (path, name), value in self.values.items():
            theta = thetas.setdefault(path, keep_all_theta())
            if value is None:
                theta[CALIBRATED[name]] = math.inf
            elif value > 0:
                theta[CALIBRATED[name]] = quantile_curve(self.shares[path, name])(value)
        return thetas


class Shifted:
    """Fractions shifted until a target is hit."""

    def __init__(self, evaluator: Evaluator, fractions: Fractions, extras: Extras) -> None:
        """``extras`` are those in force."""
        self._evaluator, self._fractions, self._extras = evaluator, fractions, extras

    def hit(self, target: float, tolerance: float) -> tuple[dict[str, Tensor], Measurement]:
        """Return the thresholds that reach a target, and what they give."""

        def thetas(s: float) -> dict[str, Tensor]:
            return self._fractions.shifted((2 * s - 1) * WIDEST).thetas()

        def measured(s: float) -> Measurement:
            return self._evaluator.measure(request_of(thetas(s), self._extras))

        s = reach(lambda s: measured(s).skip_ratio, target, tolerance, guess=0.5, slope=2.0)
        return thetas(s), measured(s)


def _shifted(value: float, shift: float) -> float:
    if value in (0.0, 1.0):
        return value
    logit = math.log(value / (1 - value)) + shift
    return 1 / (1 + math.exp(-logit))
