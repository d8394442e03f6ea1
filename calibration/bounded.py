"""The sweep's optimum on its grid in fewer measurements, with a proof or with the gap that is left.

A column (a step of text's thresholds) whose bound is no better than the best cell found cannot hold
the optimum. One cell just below the frontier can rule out its own column and those right of it, as
far as its KL is no less than the best; where the frontier lies is estimated from all cells measured
so far, for whatever target. So a column far from the optimum takes less than one measurement, and
one that competes takes two: where the sweep takes two for each, and the way to the first.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modes_fx.calibration.bounds import Bounds
from modes_fx.calibration.estimates import Estimates
from modes_fx.calibration.plane import log_kl
from modes_fx.calibration.sweep import Cell, Grid

FIRST_COLUMNS = 7
MARGIN = 0.03
"""Estimates of log KL are trusted that far: not to measure what would just fail to rule out."""

PART = 0.24
"""Of the sweep's measurements: a little under a quarter, because their number is estimated."""

LEAST = 12
"""On a small grid a quarter would be too few to tell anything."""

LATE = 0.6
"""After this part of the measurements allowed, they go to where the bound is weakest."""

CHECKS = 6
"""When all columns are ruled out, so many are measured nevertheless, those with the least bounds:
what contradicts the bounds is only seen where it is measured."""


@dataclass(frozen=True)
class Bounded:
    """What a bounded search found for a target.

    Attributes:
        cell: of least KL among the measured ones that reach the target; None where none does.
        kl: there.
        lower_bound: no cell that reaches the target has less KL, as far as skip ratio and KL grow
            with the thresholds, and but for what was seen to contradict that.
        measured: how many cells were measured for this target, beyond those for earlier ones.
        contradictions: by how much at most KL fell, as a part of it, among cells of between half
            and twice this one's, and the skip ratio fell, where thresholds grew.
    """

    cell: Cell | None
    kl: float
    lower_bound: float
    measured: int
    contradictions: tuple[float, float]

    @property
    def certified(self) -> bool:
        """Whether the bounds leave no better cell."""
        return self.kl <= self.lower_bound

    @property
    def gap(self) -> float:
        """By how much the optimum's KL may be lower, as a part of the one found."""
        return 0.0 if self.certified else 1 - self.lower_bound / self.kl


def allowance(grid: Grid, targets: Sequence[float]) -> int:
    """Return how many cells may be measured anew for the last of some targets.

    That is what is left of a quarter of what the sweeps for all of them measure, as far as that can
    be told from the ends of the grid, and at least ``LEAST``.

    Args:
        grid: holds what was measured for the targets before; its ends are measured if they are not.
        targets: ascending, which is how sweeps share most cells.
    """
    last = grid.size - 1
    for cell in ((last, last), (last, 0), (0, last)):
        grid.at(cell)
    swept, shared = 0.0, 0.0
    for target in targets:
        first, end, lowest = Estimates(grid).frontier(target)
        swept += grid.size + (end - first) + (last - lowest) - shared
        shared = first
    return max(int(PART * swept) - len(grid.points), LEAST)


def bounded_search(grid: Grid, target: float, most: int) -> Bounded:
    """Find the sweep's optimum for a target.

    Args:
        grid: holds what was measured for other targets.
        target: the skip ratio.
        most: how many cells may be measured anew.
    """
    before, last = len(grid.points), grid.size - 1
    if grid.at((last, last)).skip_ratio >= target:
        for cell in _cells_to_measure(grid, target, before + LATE * most):
            if len(grid.points) >= before + most:
                break
            grid.at(cell)
    bounds = Bounds.of(grid, target)
    return Bounded(
        cell=bounds.best,
        kl=bounds.kl,
        lower_bound=bounds.lower_bound,
        measured=len(grid.points) - before,
        contradictions=bounds.contradictions,
    )


def _cells_to_measure(grid: Grid, target: float, late: float) -> Iterator[Cell]:
    """Yield cells until the optimum is certain; each is to be measured before the next is taken."""
    if (corner := (grid.size - 1, 0)) not in grid.points:
        yield corner
    for k in range(FIRST_COLUMNS):
        choice = _Choice(grid, target)
        columns = choice.bounds.columns
        cell = choice.on_frontier(columns[round(k * (len(columns) - 1) / (FIRST_COLUMNS - 1))])
        if cell not in grid.points:
            yield cell
    checked: set[int] = set()
    while True:
        choice = _Choice(grid, target)
        if choice.bounds.open_columns:
            promising = choice.most_promising(late=len(grid.points) > late)
            if promising is None:
                return
            yield promising
        elif len(checked) < CHECKS and (column := choice.least_sure(checked)) is not None:
            checked.add(column)
            yield choice.on_frontier(column)
        else:
            return


class _Choice:
    """The choice of the next cell, by what is measured so far."""

    def __init__(self, grid: Grid, target: float) -> None:
        self.bounds = Bounds.of(grid, target)
        self._known = grid.points
        self._estimates = Estimates(grid)
        highest = np.minimum(self.bounds.reached, grid.size - 1)
        crossings = self._estimates.crossings(np.arange(grid.size), target)
        self._crossing = np.clip(crossings, self.bounds.first, highest)

    def on_frontier(self, column: int) -> Cell:
        """The cell of a column where the frontier should be, or the next one that tells."""
        step = int(self._crossing[column])
        if (column, step) in self._known and step > self.bounds.first[column]:
            step -= 1
        return (column, step)

    def most_promising(self, late: bool) -> Cell | None:
        """A cell that should be a better best, or one for the columns of the least bound.

        Early it should rule out as many of them as possible; late it should just bound them. There
        is none where skip ratios contradict each other so that nothing more can be told.
        """
        columns = [i for i in self.bounds.open_columns if self.on_frontier(i) not in self._known]
        if not columns:
            return None
        frontier = {i: self.on_frontier(i) for i in columns}
        kl = self._estimates.at(list(frontier.values()))[:, 1]
        if kl.min() < log_kl(self.bounds.kl) - MARGIN:
            return frontier[columns[int(kl.argmin())]]
        least = min(self.bounds.kl_from[i] for i in columns)
        weakest = [i for i in columns if self.bounds.kl_from[i] <= least * (1 + MARGIN)]
        bounding = self._bounding(weakest)
        if late and bounding:
            return bounding
        _, cell = max(self._ruling_out(weakest), default=(0.0, None))
        return cell or bounding or frontier[weakest[0]]

    def least_sure(self, checked: Collection[int]) -> int | None:
        """The column ruled out by the least KL whose cell on the frontier is not measured."""
        columns = [
            i
            for i in self.bounds.columns
            if i not in checked and self.on_frontier(i) not in self._known
        ]
        return min(columns, key=lambda i: (self.bounds.kl_from[i], i), default=None)

    def _ruling_out(self, weakest: Sequence[int]) -> Iterator[tuple[float, Cell]]:
        """Yield cells with how many open columns they should rule out for what they take.

        A cell that misses the target bounds its own column; one further from the frontier bounds
        columns right of it as well, once a cell there shows that the frontier lies beyond it.
        """
        columns = np.array(self.bounds.open_columns)
        steps = self._crossing[columns]
        below = [(int(i), int(step) - 1) for i, step in zip(columns, steps, strict=True)]
        above = self._are_above(below)
        for k in map(int, np.flatnonzero(above)):
            yield self._closed(weakest, columns[k], columns[k], below[k][1]), below[k]
        pairs = [(int(i), int(step)) for step in steps for i in columns]
        above_at = self._are_above(pairs).reshape(len(columns), -1)
        for k, (right, step) in enumerate(zip(columns, steps, strict=True)):
            lefts = columns[:k][above_at[k, :k]]
            if not len(lefts):
                continue
            left = int(lefts[0])
            closed = self._closed(weakest, left, right, int(step))
            if self.bounds.first[right] >= step:
                yield closed, (left, int(step))
            elif step > 0 and below[k] not in self._known:
                yield closed / 2, below[k]

    def _bounding(self, weakest: Sequence[int]) -> Cell | None:
        """The cell that bounds columns without ruling them out, a run or half a run at once."""
        run = [i for k, i in enumerate(weakest) if i - weakest[0] == k]
        right = run[-1]
        first, crossing = int(self.bounds.first[right]), int(self._crossing[right])
        if first < crossing - 1:
            cells = [(right, crossing - 1)]
        else:
            cells = [(run[0], first), (run[len(run) // 2], first)]
        return next((cell for cell in cells if cell not in self._known), None)

    def _closed(self, weakest: Sequence[int], left: int, right: int, step: int) -> float:
        """How many of the columns a cell should rule out, known up to ``right``."""
        columns = (i for i in weakest if i >= left)
        return float(sum(i <= right or self.bounds.first[i] >= step for i in columns))

    def _are_above(self, cells: Sequence[Cell]) -> NDArray[np.bool_]:
        """Whether cells are unmeasured and should have more KL than the best."""
        unknown = np.array([cell not in self._known and cell[1] >= 0 for cell in cells])
        return unknown & (self._estimates.at(cells)[:, 1] > log_kl(self.bounds.kl) + MARGIN)
