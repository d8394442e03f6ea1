"""Refinement accepts what helps on both halves of the samples, and nothing else."""

from types import SimpleNamespace

import pytest
import torch

from modes_fx.calibration.refine import refine
from modes_fx.vocabulary import Modality
from tests.calibration.test_fractions import fractions


class Costs:
    """Stands in for an evaluator: each sample pays for what layers skip, at its own rates."""

    def __init__(self, rates: list[dict[str, float]]) -> None:
        self.rates, self.passes = rates, 0

    def measure(self, request) -> SimpleNamespace:
        self.passes += 1
        skipped = {path: float(request.theta(path)[Modality.TEXT].clamp(0, 1)) for path in "ab"}
        sums = [sum(r[path] * skipped[path] ** 2 for path in r) for r in self.rates]
        difference = SimpleNamespace(
            samples=range(len(sums)),
            kl_sums=torch.tensor(sums, dtype=torch.float64),
            tokens=torch.ones(len(sums)),
        )
        return SimpleNamespace(difference=difference, skip_ratio=0.5)


def test_the_cheaper_layer_skips_more() -> None:
    start = fractions(a_vision=None, b_vision=None)
    found = refine(Costs([{"a": 1.0, "b": 9.0}] * 8), start, 0.5, rounds=2)
    assert found.values["a", "text"] > 0.6 > 0.4 > found.values["b", "text"]
    assert found.skipped == pytest.approx(start.skipped, abs=1e-6)


def test_nothing_moves_where_halves_disagree() -> None:
    rates = [{"a": 1.0, "b": 9.0}] * 8
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for sample in order[:4].tolist():
        rates[sample] = {"a": 9.0, "b": 1.0}
    start = fractions(a_vision=None, b_vision=None)
    found = refine(Costs(rates), start, 0.5, rounds=1)
    assert found.values["a", "text"] == pytest.approx(0.5, abs=0.03)


def test_no_rounds_change_nothing() -> None:
    start = fractions(a_vision=None, b_vision=None)
    assert refine(Costs([{"a": 1.0, "b": 9.0}] * 2), start, 0.5, rounds=0) is start
