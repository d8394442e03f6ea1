"""Estimates of what is not measured: exact where the surface is flat, near where it bends."""

import math

import numpy as np
import pytest

from modes_fx.calibration.estimates import Estimates
from modes_fx.calibration.sweep import Grid, Point

SIZE = 41


def tilted(place: tuple[float, float]) -> Point:
    u, v = place
    return Point(0.6 * u + 0.4 * v, math.exp(9 * u + 6 * v - 9))


def bent(place: tuple[float, float]) -> Point:
    u, v = place
    ratio = 0.6 * u + 0.4 * v - 0.15 * u * v * (1 - u)
    return Point(ratio, math.exp(9 * ratio))


def measured(surface, cells) -> Grid:
    grid = Grid(SIZE, surface)
    for cell in cells:
        grid.at(cell)
    return grid


def test_a_plane_is_met_exactly_from_a_few_cells() -> None:
    grid = measured(tilted, [(40, 40), (40, 0), (0, 40), (12, 20)])
    for cell in ((0, 0), (3, 30), (39, 1)):
        ratio, log_kl = Estimates(grid).at([cell])[0]
        expected = tilted(grid.place(cell))
        assert ratio == pytest.approx(expected.skip_ratio, abs=1e-9)
        assert log_kl == pytest.approx(math.log(expected.kl), abs=1e-6)


def test_the_crossings_of_a_bent_surface_are_met_near_measured_cells() -> None:
    def crosses(column: int) -> int:
        steps = range(SIZE)
        return next(j for j in steps if bent((column / 40, j / 40)).skip_ratio >= 0.5)

    crossing = {column: crosses(column) for column in range(10, 34)}
    known = [(i, crossing[i]) for i in range(10, 34, 5)]
    grid = measured(bent, [(40, 40), (40, 0), (0, 40), *known])
    columns = np.array(list(crossing))
    off = Estimates(grid).crossings(columns, 0.5) - np.array(list(crossing.values()))
    assert np.abs(off).max() <= 1
    assert (off == 0).mean() > 0.8


def test_a_crossing_outside_the_grid_is_said_to_be_outside() -> None:
    grid = measured(tilted, [(40, 40), (40, 0), (0, 40)])
    assert Estimates(grid).crossings(np.array([0, 40]), 0.5).tolist() == [SIZE, -1]


def test_the_ends_of_the_frontier_follow_from_the_ends_of_the_grid() -> None:
    grid = measured(tilted, [(40, 40), (40, 0), (0, 40)])
    assert Estimates(grid).frontier(0.5) == pytest.approx((40 / 6, 200 / 6, 0))
    assert Estimates(grid).frontier(0.88) == pytest.approx((32, 40, 28))


def test_one_cell_is_enough_to_begin_with() -> None:
    ratio, _ = Estimates(measured(tilted, [(40, 40)])).at([(20, 20)])[0]
    assert ratio == pytest.approx(0.5)
