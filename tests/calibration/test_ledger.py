"""What was measured is looked up, in this run and in a later one, before anything is run."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from modes_fx.calibration import Evaluator, Journal, Reference, Request
from modes_fx.calibration.data import Batch
from modes_fx.calibration.removals import removed_theta

BELONGS = {"model": "tiny"}


@pytest.fixture
def halves(batches) -> list[Batch]:
    return [batches[0], replace(batches[1], held_back=True)]


@pytest.fixture
def removal(model) -> Request:
    first = Evaluator(model, Reference([])).layers[0]
    return Request.of({first: removed_theta(["text"])})


def test_a_measurement_is_made_once(model, halves, removal) -> None:
    with Evaluator(model, Reference(halves)) as evaluator:
        once = evaluator.measure(removal)
        again = evaluator.measure(removal)
        assert once.kl == again.kl > 0
        assert evaluator.ledger.run == 2, "one for each half"
        assert evaluator.passes == 1
        assert evaluator.ledger.layer_forwards == 12 * 2


def test_a_half_is_what_all_is_made_of(model, halves, removal) -> None:
    with Evaluator(model, Reference(halves)) as evaluator:
        fit, held_back = (evaluator.measure(removal.on(part)) for part in ("fit", "held_back"))
        assert evaluator.passes == 1
        both = evaluator.measure(removal)
        assert evaluator.ledger.run == 2
    difference = both.difference
    assert list(difference.samples) == list(range(12))
    assert fit.difference.samples == tuple(sorted(halves[0].samples))
    assert float(difference.kl_sums.sum()) == pytest.approx(
        float(fit.difference.kl_sums.sum() + held_back.difference.kl_sums.sum())
    )
    for path, counts in both.counts.items():
        assert_close(counts, fit.counts[path] + held_back.counts[path])


def test_a_later_run_measures_nothing_again(model, halves, removal, tmp_path) -> None:
    measured = []
    for _ in range(2):
        journal = Journal(tmp_path, BELONGS)
        with Evaluator(model, Reference(halves), journal=journal) as evaluator:
            found = evaluator.measure(removal)
            sums = evaluator.collect("ones", removal, lambda: {"n": torch.ones(2) / 3})
            measured.append((found, sums, evaluator.passes, evaluator.ledger.layer_forwards))
            ran = evaluator.ledger.run
    assert ran == 0
    (first, ones, *cost), (later, ones_later, *cost_later) = measured
    assert later.kl == first.kl
    assert later.to_dict() == first.to_dict()
    assert torch.equal(ones["n"], ones_later["n"])
    assert cost == cost_later == [2.0, 48]


def pop(left: list[float]) -> dict[str, torch.Tensor]:
    return {"v": torch.tensor(left.pop(), dtype=torch.float64)}


def test_statistics_are_the_same_in_any_order(model, halves) -> None:
    values = [1 / 3, 1e-4]
    sums = []
    for order in (values, values[::-1]):
        left = list(order)
        with Evaluator(model, Reference(halves)) as evaluator:
            found = evaluator.collect("v", Request(), lambda left=left: pop(left))
            sums.append(float(found["v"]))
    assert sums[0] == sums[1] == pytest.approx(sum(values), abs=2**-29)


def test_a_part_without_samples_is_refused(model, batches) -> None:
    with Evaluator(model, Reference(batches)) as evaluator:
        assert not evaluator.can_hold_back
        with pytest.raises(ValueError, match="no sample is of the part 'held_back'"):
            evaluator.measure(Request(part="held_back"))
