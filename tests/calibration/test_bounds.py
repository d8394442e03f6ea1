"""What measured cells prove of the others, and how bounds give way to contradictions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modes_fx.calibration.bounds import Bounds
from modes_fx.calibration.sweep import Grid, Point, frontier_sweep
from tests.calibration.test_sweep import grids

cells = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30)


@given(grids(), st.floats(0.05, 1), cells)
def test_no_column_of_a_growing_grid_breaks_its_bounds(grid, target, measured) -> None:
    for cell in measured:
        grid.at(cell)
    bounds, whole = Bounds.of(grid, target), Grid(grid.size, grid.measure)
    assert bounds.contradictions == pytest.approx((0, 0), abs=1e-6)
    for i in range(grid.size):
        reaching = [j for j in range(grid.size) if whole.at((i, j)).skip_ratio >= target]
        crossing = reaching[0] if reaching else grid.size
        assert bounds.first[i] <= crossing <= bounds.reached[i]
        if reaching:
            assert bounds.kl_from[i] <= whole.at((i, crossing)).kl + 1e-9
    optimum = frontier_sweep(whole, target)
    if optimum is not None:
        assert bounds.lower_bound <= whole.at(optimum).kl + 1e-9


def grid_of(points: dict[tuple[int, int], Point], size: int = 9) -> Grid:
    return Grid(size, lambda place: pytest.fail(f"{place} was measured"), points)


def test_a_cell_that_misses_bounds_the_columns_left_of_it_and_its_kl_those_right_of_it() -> None:
    grid = grid_of({(4, 3): Point(0.4, 2.0), (8, 8): Point(1.0, 9.0)})
    bounds = Bounds.of(grid, 0.5)
    assert bounds.first.tolist() == [4] * 5 + [0] * 4
    assert bounds.kl_from.tolist() == [0] * 4 + [2] + [0] * 4, "right of it, it may be lower down"
    assert bounds.open_columns == list(range(9))
    assert (bounds.best, bounds.lower_bound) == ((8, 8), 0)


def test_beyond_a_cell_there_may_be_as_little_kl_as_was_seen_beyond_one_of_its_kl() -> None:
    fell = {(2, 2): Point(0.1, 4.0), (2, 3): Point(0.2, 2.5)}
    corner, best = {(4, 3): Point(0.4, 3.0)}, {(0, 8): Point(0.6, 2.8)}
    assert Bounds.of(grid_of({**corner, **best}), 0.5).kl_from[4] == 3
    bounds = Bounds.of(grid_of({**corner, **best, **fell}), 0.5)
    assert bounds.kl_from[4] == 2.5
    assert bounds.contradictions[0] == pytest.approx(1 - 2.5 / 4)


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(2.0, 1.5, id="below"), pytest.param(9.0, 4.0, id="above")],
)
def test_falls_at_other_levels_leave_a_bound_as_it_is(before, after) -> None:
    fell = {(2, 2): Point(0.1, before), (2, 3): Point(0.2, after)}
    bounds = Bounds.of(grid_of({(4, 3): Point(0.4, 3.0), **fell}), 0.5)
    assert bounds.kl_from[4] == 3


def test_a_skip_ratio_that_fell_moves_where_the_frontier_may_be() -> None:
    points = {(4, 4): Point(0.49, 1.0)}
    assert Bounds.of(grid_of(points), 0.5).first[3] == 5
    points |= {(1, 1): Point(0.2, 0.1), (1, 2): Point(0.17, 0.2)}
    bounds = Bounds.of(grid_of(points), 0.5)
    assert bounds.contradictions[1] == pytest.approx(0.03)
    assert bounds.first[3] == 0, "the miss by 0.01 tells nothing of other columns"
    assert bounds.first[4] == 5, "but of its own"


def test_without_a_cell_that_reaches_the_target_there_is_no_best() -> None:
    bounds = Bounds.of(grid_of({(8, 8): Point(0.4, 1.0)}), 0.5)
    assert bounds.best is None
    assert math.isinf(bounds.kl)
    assert bounds.columns == []
    assert np.all(bounds.first == 9)
