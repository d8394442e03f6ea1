"""The published search for tau on a grid, and brute force: what other searches are held against."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Cell = tuple[int, int]
"""A place of the grid: a step of text's thresholds, a step of the others'."""


class Point(NamedTuple):
    """What is measured at a cell."""

    skip_ratio: float
    kl: float


class Measured(Protocol):
    """What measuring returns."""

    @property
    def skip_ratio(self) -> float:
        """Skipped pairs over pairs."""

    @property
    def kl(self) -> float:
        """From the full model."""


@dataclass
class Grid:
    """D x D cells and what was measured there, once each, for all targets.

    Attributes:
        size: D.
        measure: measures the place (u, v) in [0, 1] x [0, 1].
        points: by cell, in the order of measuring.
    """

    size: int
    measure: Callable[[tuple[float, float]], Measured]
    points: dict[Cell, Point] = field(default_factory=dict)

    def place(self, cell: Cell) -> tuple[float, float]:
        """Return the place of a cell."""
        last = self.size - 1
        return (cell[0] / last, cell[1] / last)

    def at(self, cell: Cell) -> Point:
        """Measure a cell, once."""
        if cell not in self.points:
            measured = self.measure(self.place(cell))
            self.points[cell] = Point(measured.skip_ratio, measured.kl)
        return self.points[cell]


def frontier_sweep(grid: Grid, target: float) -> Cell | None:
    """Return the cell of least KL among those that reach a target, as published.

    Text's thresholds ascend; for each the others' descend to the smallest that still reach the
    target, which lies at most where it lay for the one before.

    Returns:
        None where no cell reaches the target.
    """
    frontier = list(_walk(grid, target))
    return min(frontier, key=lambda cell: grid.at(cell).kl) if frontier else None


def brute_force(grid: Grid, target: float) -> Cell | None:
    """Return the cell of least KL among all that reach a target, measuring every cell."""
    cells = [(i, j) for i in range(grid.size) for j in range(grid.size)]
    reaching = [cell for cell in cells if grid.at(cell).skip_ratio >= target]
    return min(reaching, key=lambda cell: grid.at(cell).kl) if reaching else None


def _walk(grid: Grid, target: float) -> Iterator[Cell]:
    j = grid.size - 1
    for i in range(grid.size):
        if grid.at((i, j)).skip_ratio < target:
            continue
        while j > 0 and grid.at((i, j - 1)).skip_ratio >= target:
            j -= 1
        yield (i, j)
