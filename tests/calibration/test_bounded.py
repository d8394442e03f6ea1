"""The bounded search: the sweep's optimum in fewer measurements, proved, or the gap left."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modes_fx.calibration.bounded import Bounded, allowance, bounded_search
from modes_fx.calibration.sweep import Grid, Point, frontier_sweep
from tests.calibration.test_sweep import grids

ENOUGH = 10**6
SIZE = 100


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


def rough(seed: int, noise: float = 0.0) -> Callable[[tuple[float, float]], Point]:
    """KL as it is measured: it grows slowly but for jumps, where an answer changes, and noise."""
    draw = np.random.default_rng(seed)
    text = draw.uniform(0.4, 0.7)
    jumps = [np.cumsum(draw.pareto(1.5, SIZE) * (draw.random(SIZE) < 0.3)) for _ in range(2)]
    slopes = draw.uniform(4, 8, 2)
    factor = np.exp(noise * draw.standard_normal((SIZE, SIZE)))

    def measure(place: tuple[float, float]) -> Point:
        cell = [round(at * (SIZE - 1)) for at in place]
        kl = -2.0
        for at, step, jump, slope in zip(place, cell, jumps, slopes, strict=True):
            kl += math.exp(slope * at) * (1 + jump[step] / jump[-1])
        u, v = place
        ratio = text * u + (1 - text) * v - 0.1 * u * v * (1 - u) * (1 - v)
        return Point(ratio, 1e-3 * kl * factor[cell[0], cell[1]])

    return measure


def searched(surface, targets=(0.5, 0.75, 0.88)) -> list[tuple[float, Bounded]]:
    """The sweep's KL and what the bounds give, with at most a quarter of the sweep's cells."""
    swept, grid = Grid(SIZE, surface), Grid(SIZE, surface)
    found = []
    for number, target in enumerate(targets, start=1):
        optimum = swept.at(frontier_sweep(swept, target)).kl
        allowed = allowance(grid, targets[:number])
        found.append((optimum, bounded_search(grid, target, allowed)))
    assert len(grid.points) <= len(swept.points) / 4
    return found


@pytest.mark.parametrize("seed", [4, 6])
def test_a_quarter_of_the_sweeps_cells_certifies_its_optimum(seed) -> None:
    for optimum, found in searched(rough(seed)):
        assert found.kl == optimum
        assert found.gap <= 0.01


@pytest.mark.parametrize("seed", [1, 7])
def test_where_a_quarter_is_not_enough_the_gap_is_reported(seed) -> None:
    found = searched(rough(seed))
    assert not all(bounded.certified for _, bounded in found)
    for optimum, bounded in found:
        assert bounded.lower_bound <= optimum <= bounded.kl <= 1.05 * optimum
        assert bounded.kl == optimum or not bounded.certified
        assert bounded.gap <= 0.1


@pytest.mark.parametrize("seed", [2, 6])
def test_noise_is_seen_and_misleads_by_no_more_than_it_is(seed) -> None:
    found = searched(rough(seed, noise=0.03))
    assert 0.01 < max(bounded.contradictions[0] for _, bounded in found) < 0.2
    for optimum, bounded in found:
        assert bounded.kl <= 1.05 * optimum


def test_a_ridge_that_bounds_rest_on_is_seen_through() -> None:
    """One step of text's thresholds has far more KL than those around it."""
    smooth = rough(2)

    def ridged(place: tuple[float, float]) -> Point:
        point = smooth(place)
        return point._replace(kl=point.kl * (5 if round(place[0] * (SIZE - 1)) == 22 else 1))

    for optimum, found in searched(ridged):
        assert found.kl <= 1.05 * optimum


def test_an_allowance_that_is_spent_leaves_what_was_measured_for_other_targets() -> None:
    grid = Grid(SIZE, rough(2))
    bounded_search(grid, 0.5, 60)
    measured = len(grid.points)
    found = bounded_search(grid, 0.51, 0)
    assert (found.measured, len(grid.points)) == (0, measured)
    assert grid.at(found.cell).skip_ratio >= 0.51
    assert 0 < found.lower_bound <= found.kl


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
