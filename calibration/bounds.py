"""What measured cells of a grid prove about the others, for one target.

Skip ratio and KL grow with both thresholds, so a cell that misses the target says that the frontier
lies beyond it, and the KL of a cell is a lower bound on all cells beyond it. Where measurements
contradict that, bounds give way as far as they were seen to fail: beyond a cell there may be as
little KL as was measured beyond any cell of at least its KL, and skip ratios may fall by as much as
they were seen to.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modes_fx.calibration.sweep import Cell, Grid

ROUNDING = 1e-9
"""Falls of KL by less, in nats, contradict nothing."""


@dataclass(frozen=True)
class Bounds:
    """Bounds on the columns (steps of text's thresholds) of a grid of D x D cells.

    Attributes:
        best: the cell of least KL among the measured ones that reach the target; None if none does.
        kl: there; infinite where there is none.
        first: int ``[D]``, the least step at which the frontier may cross a column.
        reached: int ``[D]``, the least step that reaches the target for certain; D where none does.
        kl_from: float ``[D]``, no cell of the frontier in a column has less KL than this.
        contradictions: by how much at most KL fell, as a part of it, among cells of between half
            and twice the best one's, and the skip ratio fell, where thresholds grew.
    """

    best: Cell | None
    kl: float
    first: NDArray[np.int64]
    reached: NDArray[np.int64]
    kl_from: NDArray[np.float64]
    contradictions: tuple[float, float]

    @staticmethod
    def of(grid: Grid, target: float) -> "Bounds":
        """Read the bounds off what is measured so far, for whatever target it was."""
        cells = np.array(list(grid.points))
        skip, kl = np.array(list(grid.points.values())).T
        before = (cells[:, None] <= cells[None]).all(-1)
        skip_fall = max(float((np.where(before, skip[:, None] - skip, 0.0)).max()), 0.0)
        fell = before & (kl[:, None] > kl + ROUNDING)
        least_beyond = np.where(fell, kl, kl[:, None]).min(1)
        no_less = kl >= kl[:, None]
        trusted = np.where(no_less, least_beyond, kl[:, None]).min(1)

        first, reached = _crossings(grid.size, cells, skip - target, skip_fall)
        columns = np.arange(grid.size)
        below = (cells[:, 0] <= columns[:, None]) & (cells[:, 1] <= first[:, None])
        kl_from = np.where(below, trusted, 0.0).max(1)
        for (column, step), ratio, measured in zip(cells, skip, kl, strict=True):
            if step == first[column] and ratio >= target:
                kl_from[column] = measured
        reaching = [(p.kl, cell) for cell, p in grid.points.items() if p.skip_ratio >= target]
        least, best = min(reaching, default=(math.inf, None))
        near = fell & (kl >= least / 2) & (kl[:, None] <= least * 2)
        kl_fall = float(np.where(near, 1 - kl / np.maximum(kl[:, None], ROUNDING), 0.0).max())
        return Bounds(best, least, first, reached, kl_from, (kl_fall, skip_fall))

    @property
    def columns(self) -> list[int]:
        """The columns that the frontier may cross."""
        return [int(i) for i in np.flatnonzero(self.first < len(self.first))]

    @property
    def open_columns(self) -> list[int]:
        """The columns that may hold a better cell than the best one."""
        return [i for i in self.columns if self.kl_from[i] < self.kl]

    @property
    def lower_bound(self) -> float:
        """No cell that reaches the target has less KL."""
        return min([self.kl, *(float(self.kl_from[i]) for i in self.open_columns)])


def _crossings(
    size: int, cells: NDArray[np.int64], excess: NDArray[np.float64], slack: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the frontier may cross each column, and where the target is surely reached."""
    column = np.arange(size)[:, None]
    own = cells[:, 0] == column
    needed = np.where(own, 0.0, slack)
    reaches = (cells[:, 0] <= column) & (excess >= needed)
    misses = (cells[:, 0] >= column) & (excess < -needed)
    reached = np.where(reaches, cells[:, 1], size).min(1)
    first = np.where(misses, cells[:, 1] + 1, 0).max(1)
    return np.minimum(first, reached), reached
