"""Measuring: results are compared before anything is timed."""

import pytest
import torch

from modes_fx.bench.gpu import measure
from modes_fx.bench.gpu.shapes import Layer

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [1, 6])
def test_our_kernels_and_their_peers_compute_the_same_and_are_timed(small, tokens, monkeypatch):
    monkeypatch.setattr(measure, "REPLAYS", 1)
    case = measure.measure_case(small, tokens, 0.5, CPU, rounds=2)
    assert [way.name for way in case.ways] == [
        "modes-fx",
        "transformers grouped_mm",
        "torch _grouped_mm",
    ]
    for way in case.ways:
        assert way.error < measure.TOLERANCE
        assert 0 < way.microseconds[1] <= way.microseconds[0] <= way.microseconds[2]
        assert not way.in_graph
    assert case.gigaflops == pytest.approx(2 * tokens * 3 * 32 * 16 / 1e9)


def test_nothing_is_timed_where_a_result_is_wrong(small, monkeypatch) -> None:
    monkeypatch.setattr(
        measure, "peers_of", lambda layer, params: {"broken": lambda x, index, weight: x}
    )
    with pytest.raises(measure.Difference, match="small, 5 tokens: a result is off by"):
        measure.measure_case(small, 5, 0.0, CPU, rounds=1)


def test_a_layer_without_peers_is_timed_alone(monkeypatch) -> None:
    monkeypatch.setattr(measure, "REPLAYS", 1)
    layer = Layer("other", 3, 1, hidden=32, intermediate=16, form="squared_relu")
    case = measure.measure_case(layer, 3, 0.0, CPU, rounds=1)
    assert [way.name for way in case.ways] == ["modes-fx"]
