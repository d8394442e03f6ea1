"""The sweep's optimum on its grid in fewer measurements, with a proof or with the gap that is left.

Skip ratio and KL grow with both thresholds, so every measurement bounds others: a cell that misses
the target says that the frontier lies beyond it, and the KL of a cell is a lower bound on all cells
beyond it. A column (a step of text's thresholds) whose bound is no better than the best cell found
cannot hold the optimum and is never measured. What is measured serves all targets.

That both grow is checked on all that is measured. Where they do not, bounds give way by the largest
contradiction seen, so that noise makes the search measure more, not miss the optimum.
"""

import math
from dataclasses import dataclass

from modes_fx.calibration.plane import KL_PER_SKIP, log_kl
from modes_fx.calibration.sweep import Cell, Grid

FIRST_COLUMNS = 7
MARGIN = 0.02
"""Estimates of log KL are trusted that far: not to measure what would just fail to rule out."""

LATE = 2 / 3
"""After this part of the measurements allowed, they go to where the bound is weakest."""


@dataclass(frozen=True)
class Bounded:
    """What a bounded search found for a target.

    Attributes:
        cell: of least KL among the measured ones that reach the target; None where none does.
        kl: there.
        lower_bound: no cell that reaches the target has less KL, as far as both grow.
        measured: how many cells were measured for this target, beyond those for earlier ones.
        contradictions: by how much at most KL fell, as a part of it, and the skip ratio fell, where
            thresholds grew.
    """

    cell: Cell | None
    kl: float
    lower_bound: float
    measured: int
    contradictions: tuple[float, float]

    @property
    def certified(self) -> bool:
        """Whether it is the sweep's optimum for certain."""
        return self.kl <= self.lower_bound

    @property
    def gap(self) -> float:
        """By how much the optimum's KL may be lower, as a part of the one found."""
        return 0.0 if self.certified else 1 - self.lower_bound / self.kl


def bounded_search(grid: Grid, target: float, most: int) -> Bounded:
    """Find the sweep's optimum for a target.

    Args:
        grid: holds what was measured for other targets.
        target: the skip ratio.
        most: how many cells may be measured anew.
    """
    search = _Search(grid, target, len(grid.points) + most)
    if search.at((grid.size - 1, grid.size - 1)) < target:
        return search.result()
    columns = search.columns()
    for k in range(FIRST_COLUMNS):
        column = columns[0] + round(k * (columns[-1] - columns[0]) / (FIRST_COLUMNS - 1))
        if search.may_measure:
            search.probe(column)
    while search.may_measure and (open_columns := search.open_columns()):
        search.step(open_columns)
    return search.result()


class _Search:
    def __init__(self, grid: Grid, target: float, most: int) -> None:
        self._grid, self._target, self._most = grid, target, most
        self._before = len(grid.points)
        self._kl_slack = self._skip_slack = 0.0
        self._last = grid.size - 1
        for cell in list(grid.points):
            self._look_for_contradictions(cell)

    @property
    def may_measure(self) -> bool:
        return len(self._grid.points) < self._most

    @property
    def _late(self) -> bool:
        spent = len(self._grid.points) - self._before
        return spent > LATE * (self._most - self._before)

    def at(self, cell: Cell) -> float:
        """Measure a cell and return its skip ratio."""
        known = cell in self._grid.points
        ratio = self._grid.at(cell).skip_ratio
        if not known:
            self._look_for_contradictions(cell)
        return ratio

    def columns(self) -> list[int]:
        """The columns that may hold cells of the frontier."""
        found = [i for i in range(self._grid.size) if self._bounds(i)[0] <= self._last]
        return found or [self._last]

    def open_columns(self) -> list[int]:
        """The columns that may hold a better cell than the best one."""
        best = self._best()[1]
        return [i for i in self.columns() if not self._is_closed(i, best)]

    def step(self, open_columns: list[int]) -> None:
        """Measure the cell that promises most: a better best, or a bound that rules columns out."""
        best = self._best()[1]
        estimate = {i: self._estimate((i, self._guess(i))) for i in open_columns}
        likeliest = min(open_columns, key=lambda i: (estimate[i], i))
        if estimate[likeliest] < math.log(max(best, 1e-300)):
            self.probe(likeliest)
            return
        weakest = min(open_columns, key=lambda i: (self._lower(i), i))
        if self._late:
            corner = self._corner_around(weakest, open_columns, best)
        else:
            corner = self._corner_of_most(open_columns, best)
        if corner is not None:
            self.at(corner)
        else:
            self.probe(weakest if self._late else likeliest)

    def probe(self, column: int) -> None:
        """Measure the cell of a column where the frontier should be, and narrow it down."""
        low, high = self._bounds(column)
        if low > self._last:
            return
        guess = self._guess(column)
        if (column, guess) in self._grid.points:
            guess = low if (column, low) not in self._grid.points else min(high, self._last)
        self.at((column, guess))

    def result(self) -> Bounded:
        cell, kl = self._best()
        bounds = [self._lower(i) for i in self.columns() if not self._is_closed(i, kl)]
        return Bounded(
            cell=cell,
            kl=kl,
            lower_bound=min([kl, *bounds]),
            measured=len(self._grid.points) - self._before,
            contradictions=(1 - math.exp(-self._kl_slack), self._skip_slack),
        )

    def _best(self) -> tuple[Cell | None, float]:
        reaching = [
            (point.kl, cell)
            for cell, point in self._grid.points.items()
            if point.skip_ratio >= self._target
        ]
        if not reaching:
            return None, math.inf
        kl, cell = min(reaching)
        return cell, kl

    def _bounds(self, column: int) -> tuple[int, int]:
        """Return the least and the highest step at which the frontier may cross a column.

        The second is the grid's size where it may not cross it at all.
        """
        low, high = 0, self._grid.size
        for (i, j), point in self._grid.points.items():
            surely = self._skip_slack if i != column else 0.0
            if i <= column and point.skip_ratio >= self._target + surely:
                high = min(high, j)
            if i >= column and point.skip_ratio < self._target - surely:
                low = max(low, j + 1)
        return min(low, high), high

    def _lower(self, column: int) -> float:
        """No cell of the frontier in a column has less KL than this."""
        low, _ = self._bounds(column)
        own = self._grid.points.get((column, low))
        if own is not None and own.skip_ratio >= self._target:
            return own.kl
        below = [
            point.kl for (i, j), point in self._grid.points.items() if i <= column and j <= low
        ]
        return max(below, default=0.0) * math.exp(-self._kl_slack)

    def _is_closed(self, column: int, best: float) -> bool:
        return self._bounds(column)[0] > self._last or self._lower(column) >= best

    def _corner_of_most(self, open_columns: list[int], best: float) -> Cell | None:
        """The cell below the frontier that should rule out the most columns."""
        runs = _runs(open_columns)
        sizes = range(max(map(len, runs)), 0, -1)
        ends = (
            ends
            for size in sizes
            for run in runs
            if len(run) >= size
            for ends in ((run[0], run[size - 1]), (run[-size], run[-1]))
        )
        return next((c for a, b in ends if (c := self._useful_corner(a, b, best))), None)

    def _corner_around(self, column: int, open_columns: list[int], best: float) -> Cell | None:
        """The cell below the frontier that should rule out most columns around one."""
        run = next(run for run in _runs(open_columns) if column in run)
        ends = [(a, b) for a in run if a <= column for b in run if b >= column]
        ends.sort(key=lambda end: end[0] - end[1])
        return next((c for a, b in ends if (c := self._useful_corner(a, b, best))), None)

    def _useful_corner(self, first: int, last: int, best: float) -> Cell | None:
        """The cell whose KL bounds columns, if it is unknown and should rule them out."""
        corner = (first, self._bounds(last)[0])
        if corner in self._grid.points:
            return None
        worse = self._estimate(corner) > log_kl(best) + self._kl_slack + MARGIN
        return corner if worse else None

    def _guess(self, column: int) -> int:
        """The step at which the frontier should cross a column."""
        low, high = self._bounds(column)
        highest = min(high, self._last)
        steps = (j for j in range(low, highest + 1) if self._ratio((column, j)) >= self._target)
        guess = next(steps, highest)
        return max(guess, low)

    def _ratio(self, cell: Cell) -> float:
        """Estimate a skip ratio: as at the nearest measured cell, with the slopes of the edges."""
        near = min(self._grid.points, key=lambda other: (_distance(cell, other), other))
        slope = self._slopes()
        steps = (cell[0] - near[0], cell[1] - near[1])
        moved = sum(s * d for s, d in zip(slope, steps, strict=True)) / self._last
        return self._grid.points[near].skip_ratio + moved

    def _slopes(self) -> tuple[float, float]:
        """How the skip ratio grows along the axes, from what is measured; by half each at first."""
        whole = self._grid.points.get((self._last, self._last))
        total = whole.skip_ratio if whole else 1.0
        text = self._grid.points.get((self._last, 0))
        rest = self._grid.points.get((0, self._last))
        if text is not None:
            return text.skip_ratio, total - text.skip_ratio
        if rest is not None:
            return total - rest.skip_ratio, rest.skip_ratio
        return total / 2, total / 2

    def _estimate(self, cell: Cell) -> float:
        """Estimate log KL: between the measured cells around its column, as if they skipped so."""
        ratio = self._ratio(cell)
        level: dict[int, list[float]] = {}
        for (i, _), point in self._grid.points.items():
            if abs(point.skip_ratio - self._target) < 0.15:
                shifted = log_kl(point.kl) + KL_PER_SKIP * (ratio - point.skip_ratio)
                level.setdefault(i, []).append(shifted)
        if not level:
            return -math.inf
        left = max((i for i in level if i <= cell[0]), default=min(level))
        right = min((i for i in level if i >= cell[0]), default=max(level))
        ends = [sum(level[i]) / len(level[i]) for i in (left, right)]
        part = (cell[0] - left) / (right - left) if right > left else 0.0
        return ends[0] + part * (ends[1] - ends[0])

    def _look_for_contradictions(self, cell: Cell) -> None:
        point = self._grid.points[cell]
        for other, theirs in self._grid.points.items():
            for (a, small), (b, large) in (
                ((cell, point), (other, theirs)),
                ((other, theirs), (cell, point)),
            ):
                if a != b and a[0] <= b[0] and a[1] <= b[1]:
                    fall = log_kl(small.kl) - log_kl(large.kl)
                    if small.kl - large.kl > 1e-9:
                        self._kl_slack = max(self._kl_slack, fall)
                    self._skip_slack = max(self._skip_slack, small.skip_ratio - large.skip_ratio)


def _distance(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _runs(columns: list[int]) -> list[list[int]]:
    """Split ascending columns where they are not neighbours."""
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][-1] + 1:
            runs[-1].append(column)
        else:
            runs.append([column])
    return runs
