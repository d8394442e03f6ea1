"""What a calibration costs: both procedures agree on alpha, and the plain one asks for more."""

import pytest

from modes_fx.bench.calibration_cost import PLAIN, measure_cost, render
from tests.calibration.conftest import make_batch
from tests.tiny import tiny_vlm

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def found():
    batches = [make_batch([2, 3, 5], images=0), make_batch([0, 1, 4], images=2)]
    return measure_cost(tiny_vlm(), batches, target=0.5, grid=8)


def test_both_find_the_same_alpha(found) -> None:
    assert found.alpha_difference < 1e-3


def test_the_plain_alpha_takes_a_pass_for_each_layer_and_modality(found) -> None:
    cost = found.procedures[-1].stages["alpha"]
    assert cost.passes == 1 + 2 * 2
    assert cost.layer_forwards == cost.passes * found.layers


def test_the_plain_sweep_walks_along_the_grid(found) -> None:
    assert 8 <= found.procedures[-1].stages["tau"].passes <= 3 * 8


def test_all_reach_the_target(found) -> None:
    for one in found.procedures:
        assert one.skip_ratio >= 0.5 - 0.05, one.name
        assert one.kl >= 0


def test_every_procedure_is_three_rows(found) -> None:
    markdown = render(found)
    for name in ("ours, default", "ours, published method", PLAIN):
        assert markdown.count(f"| {name} |") == 3
