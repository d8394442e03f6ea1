"""What the points of a line say: how time grows."""

import pytest

from modes_fx.bench.environment import Environment
from modes_fx.bench.scaling.report import Point, Scaling
from modes_fx.bench.timing import Spread

HERE = Environment(
    processor="x", cores=2, threads=1, memory_gib=8, platform="Linux", versions={"torch": "2"}
)


def point(value: int, ms: float, *, impl: str = "ours", skip: float = 0.0, **fields) -> Point:
    defaults = {
        "axis": "tokens",
        "tokens": value,
        "experts": 8,
        "layers": 1,
        "achieved_skip": skip,
        "cpu_ms": ms,
        "wall_ms": 2 * ms,
        "spread": 0.1,
        "max_error": 0.01,
        "agrees": True,
        "speedup": Spread(1.5, 1.4, 1.6),
    }
    return Point(value=value, impl=impl, skip=skip, **{**defaults, **fields})


def scaling(*points: Point, clock: str = "cpu") -> Scaling:
    return Scaling(
        environment=HERE,
        shape="tiny",
        top_k=2,
        dtype="bfloat16",
        clock=clock,
        rounds=3,
        points=list(points),
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power) -> None:
    line = [point(n, 3 * n**power) for n in (1, 4, 16)]
    assert scaling().exponent(line) == pytest.approx(power, abs=1e-9)


def test_one_point_has_no_exponent() -> None:
    assert scaling().exponent([point(1, 1.0)]) is None


def test_the_clock_decides_which_time_counts() -> None:
    assert scaling(clock="wall").milliseconds(point(1, 1.0)) == 2.0


def test_lines_are_told_apart_by_implementation_and_skip_ratio() -> None:
    found = scaling(point(1, 1.0), point(1, 0.5, skip=0.5), point(2, 2.0))
    assert found.names("tokens") == ["ours", "ours, skip 0.5"]
    assert [p.value for p in found.line("tokens", "ours")] == [1, 2]


def test_a_wrong_output_is_named() -> None:
    (failure,) = scaling(point(4, 1.0, agrees=False, max_error=0.5, speedup=None)).failures
    assert "ours differs at 4 tokens: error 0.5" in failure
