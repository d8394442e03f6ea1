"""Coordinate refinement: move the thresholds of one layer and modality at a time.

KL is heavy-tailed, so such a search fits chance as soon as it can: a step counts only where both
halves of the samples agree.
"""

import random
from collections.abc import Collection

from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.fractions import Fractions
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.plane import agreed_gain
from modes_fx.calibration.request import Request

STEPS = (0.12, 0.05)
"""By how much a fraction is moved in the first round and in later ones."""

LEAST_GAIN = 0.003
"""A step has to lower log KL by more than this on both halves."""


def refine(
    evaluator: Evaluator,
    start: Fractions,
    target: float,
    *,
    rounds: int,
    held_back: Collection[int] = (),
    seed: int = 0,
) -> Fractions:
    """Move each layer's thresholds up or down, all others the other way, while it helps.

    Args:
        evaluator: inside its ``with`` block.
        start: where to begin.
        target: the skip ratio, which is kept as far as the full model's shares tell.
        rounds: how often each is tried; a round takes up to two passes for each.
        held_back: see ``agreed_gain``.
        seed: of the order in which they are tried.
    """
    order = random.Random(seed)
    best, measured = start, _measure(evaluator, start)
    for number in range(rounds):
        step = STEPS[min(number, len(STEPS) - 1)]
        slots = [slot for slot, value in best.values.items() if value is not None]
        order.shuffle(slots)
        for slot in slots:
            for direction in (step, -step):
                value = best.values[slot]
                assert value is not None
                to = min(max(value + direction, 0.0), 1.0)
                if to == value:
                    continue
                trial = best.moved(slot, to)
                tried = _measure(evaluator, trial)
                if agreed_gain(measured, tried, target, held_back) > LEAST_GAIN:
                    best, measured = trial, tried
                    break
    return best


def _measure(evaluator: Evaluator, fractions: Fractions) -> Measurement:
    return evaluator.measure(Request.of(fractions.thetas()))
