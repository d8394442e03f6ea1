"""The published search and brute force agree on surfaces that grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modes_fx.calibration.sweep import Grid, Point, brute_force, frontier_sweep

steps = st.lists(st.floats(0, 1), min_size=9, max_size=9)


def growing(values: list[float]) -> list[float]:
    total, found = 0.0, []
    for value in values:
        total += value
        found.append(total)
    return found


@st.composite
def grids(draw) -> Grid:
    """Skip ratio and KL are sums of growing functions of the two steps."""
    skip, kl = ([growing(draw(steps)) for _ in range(2)] for _ in range(2))
    most = skip[0][-1] + skip[1][-1] or 1.0

    def measure(place: tuple[float, float]) -> Point:
        i, j = round(place[0] * 8), round(place[1] * 8)
        return Point((skip[0][i] + skip[1][j]) / most, kl[0][i] + kl[1][j])

    return Grid(9, measure)


@given(grids(), st.floats(0.05, 1))
def test_the_sweep_finds_what_brute_force_finds(grid, target) -> None:
    found = frontier_sweep(grid, target)
    assert len(grid.points) <= 2 * grid.size - 1 + grid.size
    best = brute_force(grid, target)
    assert (found is None) == (best is None)
    if found is not None:
        assert grid.at(found).skip_ratio >= target
        assert grid.at(found).kl == pytest.approx(grid.at(best).kl)


def test_the_sweep_takes_the_smallest_kl_on_the_frontier() -> None:
    grid = Grid(11, lambda place: Point(0.6 * place[0] + 0.4 * place[1], place[0] ** 2))
    assert grid.place(frontier_sweep(grid, 0.5)) == pytest.approx((0.2, 1.0))
