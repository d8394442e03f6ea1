"""Scaling: every place of every axis has a point for each way, and the outputs agree."""

import pytest

from modes_fx.bench.scaling import ScalingPlan, bench_scaling
from modes_fx.bench.shapes import find_shape

TINY = find_shape("tiny")


@pytest.fixture(scope="module")
def found():
    plan = ScalingPlan(
        TINY,
        tokens=(8, 4),
        batches=(1,),
        experts=(4,),
        layers=(1, 3),
        prompt=5,
        skips=(0.0, 0.5),
        rounds=3,
        cache=10**4,
    )
    return bench_scaling(plan)


def test_one_thing_is_varied_at_a_time(found) -> None:
    points = [(p.axis, p.value, p.tokens, p.experts, p.layers) for p in found.points]
    assert list(dict.fromkeys(points)) == [
        ("tokens", 4, 4, 8, 1),
        ("tokens", 8, 8, 8, 1),
        ("batch", 1, 1, 8, 1),
        ("experts", 4, 5, 4, 1),
        ("layers", 1, 5, 8, 1),
        ("layers", 3, 5, 8, 3),
    ]


def test_all_ways_are_timed_at_every_place_and_agree(found) -> None:
    assert found.names("batch") == ["hf_eager", "hf_grouped", "ours", "ours, skip 0.5"]
    assert not found.failures
    assert all(point.speedup is not None and point.cpu_ms > 0 for point in found.points)


def test_fewer_experts_than_a_token_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 2 experts of a layer, which has 1"):
        bench_scaling(ScalingPlan(TINY, experts=(4, 1), cache=1))
