"""Measurements are put together in the order of the data and survive being written down."""

import json
import math

import pytest
import torch

from modes_fx.calibration import Difference, Measurement
from modes_fx.calibration.measurement import combine
from modes_fx.vocabulary import Modality


def measurement(samples, kl, tokens, kept) -> Measurement:
    count = len(samples)
    difference = Difference(
        samples=samples,
        tokens=torch.tensor(tokens),
        kl_sums=torch.tensor(kl, dtype=torch.float64),
        squared_errors=torch.tensor(kl, dtype=torch.float64) * 2,
        agreeing=torch.tensor(tokens),
        missed=torch.arange(count),
    )
    counts = torch.zeros(len(Modality), 2, dtype=torch.int64)
    counts[Modality.TEXT] = torch.tensor([10, kept])
    counts[Modality.PADDING] = torch.tensor([7, 0])
    return Measurement(difference, {"layer": counts}, layer_forwards=3 * count)


@pytest.fixture
def both() -> Measurement:
    second = measurement((0, 3), [1 / 3, 0.1], [1, 2], kept=4)
    return combine([measurement((1, 2), [0.5, 0.25], [4, 3], kept=6), second])


def test_samples_are_in_the_order_of_the_data(both) -> None:
    assert both.difference.samples == (0, 1, 2, 3)
    assert both.difference.kl_sums.tolist() == [1 / 3, 0.5, 0.25, 0.1]
    assert both.difference.tokens.tolist() == [1, 4, 3, 2]
    assert both.difference.correct.tolist() == [True, True, False, False]


def test_means_are_over_answer_tokens_and_ratios_leave_padding_out(both) -> None:
    assert both.kl == pytest.approx((1 / 3 + 0.5 + 0.25 + 0.1) / 10)
    assert both.mse == pytest.approx(2 * both.kl)
    assert both.agreement == 1
    assert both.accuracy == 0.5
    assert both.skip_ratio == 0.5
    assert both.skip_ratio_by_layer_and_modality == {"layer": {"text": 0.5}}
    assert both.layer_forwards == 12


def test_a_measurement_survives_json_to_the_last_bit(both) -> None:
    again = Measurement.from_dict(json.loads(json.dumps(both.to_dict())))
    assert again.to_dict() == both.to_dict()
    assert again.kl == both.kl
    assert torch.equal(again.difference.kl_sums, both.difference.kl_sums)
    assert math.isfinite(again.mse)
