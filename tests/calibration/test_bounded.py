"""The bounded search: the sweep's optimum in fewer measurements, proved, or the gap left."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modes_fx.calibration.bounded import bounded_search
from modes_fx.calibration.sweep import Grid, Point, frontier_sweep
from tests.calibration.test_sweep import grids

ENOUGH = 10**6


@settings(max_examples=60, deadline=None)
@given(grids(), st.floats(0.05, 1))
def test_what_is_certified_is_the_sweeps_optimum(grid, target) -> None:
    found = bounded_search(grid, target, most=ENOUGH)
    expected = frontier_sweep(Grid(grid.size, grid.measure), target)
    assert (found.cell is None) == (expected is None)
    if expected is not None:
        assert found.certified
        assert found.kl == pytest.approx(grid.at(expected).kl)
        assert found.gap == 0


@settings(max_examples=40, deadline=None)
@given(grids(), st.floats(0.05, 1), st.integers(1, 12))
def test_a_lower_bound_is_one_however_few_cells_are_measured(grid, target, most) -> None:
    found = bounded_search(grid, target, most)
    assert found.measured <= most + 1
    expected = frontier_sweep(Grid(grid.size, grid.measure), target)
    if expected is not None:
        assert found.lower_bound <= grid.at(expected).kl + 1e-9


def steep(place: tuple[float, float]) -> Point:
    u, v = place
    kl = math.exp(6 * u) - 1 + math.exp(3 * v) - 1
    return Point(0.63 * u + 0.37 * v, 0.001 * kl)


def test_targets_share_measurements_and_take_less_than_a_quarter_of_the_sweeps() -> None:
    targets, size = (0.5, 0.75, 0.88), 100
    swept, grid = Grid(size, steep), Grid(size, steep)
    for target in targets:
        expected = frontier_sweep(swept, target)
        found = bounded_search(grid, target, most=2 * size // 5)
        assert found.kl <= 1.05 * swept.at(expected).kl
        assert 0 <= found.gap < 1
    assert len(grid.points) <= len(swept.points) / 4


def test_a_target_that_no_cell_reaches_has_no_cell() -> None:
    grid = Grid(9, lambda place: Point(0.4 * (place[0] + place[1]), place[0]))
    found = bounded_search(grid, 0.9, most=ENOUGH)
    assert found.cell is None
    assert len(grid.points) == 1


def test_contradictions_are_reported_and_loosen_the_bounds() -> None:
    def noisy(place: tuple[float, float]) -> Point:
        point = steep(place)
        bump = 0.2 * math.sin(40 * place[1])
        return Point(point.skip_ratio, point.kl * (1 + bump))

    grid, swept = Grid(41, noisy), Grid(41, noisy)
    found = bounded_search(grid, 0.75, most=ENOUGH)
    assert 0.01 < found.contradictions[0] < 0.5
    expected = frontier_sweep(swept, 0.75)
    assert found.kl <= swept.at(expected).kl * 1.001
    assert found.lower_bound <= found.kl
