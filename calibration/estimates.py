"""What cells should give that are not measured: planes through the measured ones around them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modes_fx.calibration.plane import KL_PER_SKIP, log_kl
from modes_fx.calibration.sweep import Cell, Grid

STIFFNESS = 0.05
"""How much the slopes of the whole grid count beside those of the nearest cells."""


class Estimates:
    """Estimates of skip ratio and log KL: they choose what to measure, and prove nothing.

    Around each cell a plane is fitted to the measured cells, weighted by the fourth power of their
    nearness, and pulled to the slopes of the whole grid where too few are near.
    """

    def __init__(self, grid: Grid) -> None:
        """Read off what is measured so far; at least one cell must be."""
        self._last = grid.size - 1
        self._cells = np.array(list(grid.points), dtype=float)
        values = np.array([[p.skip_ratio, log_kl(p.kl)] for p in grid.points.values()])
        self._slopes = _slopes(grid)
        self._rest = values - self._cells @ self._slopes

    def at(self, cells: Sequence[Cell]) -> NDArray[np.float64]:
        """Return skip ratio and log KL ``[n, 2]`` of cells."""
        at = np.asarray(cells, dtype=float).reshape(-1, 2)
        return at @ self._slopes + self._planes(at)[:, 0]

    def crossings(self, columns: NDArray[np.int64], target: float) -> NDArray[np.int64]:
        """Return the step at which each column should reach a target; some lie outside the grid."""
        step = np.full(len(columns), self._last / 2)
        for _ in range(3):
            at = np.stack([columns, np.clip(step, 0, self._last)], -1)
            plane = self._planes(at)[..., 0]
            slope = np.maximum(self._slopes[1, 0] + plane[:, 2], 1e-6)
            step = at[:, 1] + (target - at @ self._slopes[:, 0] - plane[:, 0]) / slope
        return np.ceil(np.clip(step, -1, self._last + 1) - 1e-9).astype(np.int64)

    def frontier(self, target: float) -> tuple[float, float, float]:
        """Return roughly where the frontier begins and ends, as if it were a straight line.

        Returns:
            The first column that reaches the target, the first that does so at step 0, and the
            step that does in the last column.
        """
        text, rest = (max(slope, 1e-9) for slope in self._slopes[:, 0])
        corner = float(self.at([(self._last, self._last)])[0, 0])
        spare = corner - target
        ends = (self._last - spare / text, target / text, self._last - spare / rest)
        first, end, lowest = (min(max(float(at), 0.0), float(self._last)) for at in ends)
        return first, end, lowest

    def _planes(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fit level and slopes ``[n, 3, 2]`` of what the slopes of the whole grid leave."""
        offset = self._cells - at[:, None]
        weight = 1 / ((offset**2).sum(-1) + 1) ** 2
        terms = np.concatenate([np.ones_like(offset[..., :1]), offset], -1)
        weighted = terms * weight[..., None]
        normal = np.einsum("nki,nkj->nij", weighted, terms)
        stiff = STIFFNESS * np.diag([0.0, 1.0, 1.0])
        return np.linalg.solve(normal + stiff, np.einsum("nki,kj->nij", weighted, self._rest))


def _slopes(grid: Grid) -> NDArray[np.float64]:
    """How skip ratio and log KL ``[2, 2]`` grow by a step along the axes; by half each at first."""
    last = grid.size - 1
    whole = grid.points.get((last, last))
    total = whole.skip_ratio if whole else 1.0
    text, rest = (grid.points.get(cell) for cell in ((last, 0), (0, last)))
    if text is not None:
        parts = [text.skip_ratio, total - text.skip_ratio]
    elif rest is not None:
        parts = [total - rest.skip_ratio, rest.skip_ratio]
    else:
        parts = [total / 2, total / 2]
    return np.array([[part, KL_PER_SKIP * part] for part in parts]) / last
