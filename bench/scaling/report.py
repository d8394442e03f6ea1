"""The schema of the JSON file that ``modes-fx bench scaling`` writes."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from modes_fx.bench.environment import Environment, Section
from modes_fx.bench.timing import ClockName, Spread

SCHEMA_VERSION = 1

Axis = Literal["tokens", "batch", "experts", "layers"]
"""What grows: a prompt's tokens; the sequences that decode one token each; the experts of a layer;
the layers that are called one after another."""


class Point(Section):
    """One implementation at one place of an axis.

    Attributes:
        axis: what is varied.
        value: how large it is.
        tokens: T of every call.
        experts: E.
        layers: that one time is the sum of.
        impl: the implementation.
        skip: the skip ratio asked for.
        achieved_skip: the share of pairs that the gate skipped.
        cpu_ms: processor time of all layers; the median.
        wall_ms: time that passes; the median.
        spread: the interquartile range of the time by the clock, as a share of its median.
        max_error: the worst token's error against float32, of the first layer.
        agrees: whether that is within the tolerance; where not, no ratio is given.
        speedup: the time of the faster of transformers' two ways at this place, with nothing
            skipped, over this one, in the same round.
    """

    axis: Axis
    value: int
    tokens: int
    experts: int
    layers: int
    impl: str
    skip: float
    achieved_skip: float
    cpu_ms: float
    wall_ms: float
    spread: float
    max_error: float
    agrees: bool
    speedup: Spread | None

    @property
    def name(self) -> str:
        """The line that the point belongs to."""
        return f"{self.impl}, skip {self.skip:g}" if self.skip else self.impl


class Scaling(Section):
    """All that was measured in one run.

    Attributes:
        version: of this schema.
        environment: where and with what.
        shape: the layer that is varied.
        top_k: experts of a token.
        dtype: of weights and tokens.
        clock: what ratios and exponents are computed by: processor time with one thread, else wall
            time.
        rounds: how often everything was timed.
        points: by axis, in ascending order.
    """

    version: int = SCHEMA_VERSION
    environment: Environment
    shape: str
    top_k: int
    dtype: str
    clock: ClockName
    rounds: int
    points: list[Point]

    @property
    def axes(self) -> list[Axis]:
        """What was varied, in order."""
        return list(dict.fromkeys(point.axis for point in self.points))

    def line(self, axis: Axis, name: str) -> list[Point]:
        """Return the points of one line, ascending."""
        return [point for point in self.points if (point.axis, point.name) == (axis, name)]

    def names(self, axis: Axis) -> list[str]:
        """Return the lines of an axis."""
        return list(dict.fromkeys(point.name for point in self.points if point.axis == axis))

    def milliseconds(self, point: Point) -> float:
        """Return the time that counts."""
        return point.cpu_ms if self.clock == "cpu" else point.wall_ms

    def exponent(self, line: Sequence[Point]) -> float | None:
        """Return p of time ~ value**p, fitted to a line; None where it has one point."""
        if len(line) < 2:
            return None
        logs = [(math.log(point.value), math.log(self.milliseconds(point))) for point in line]
        values, times = zip(*logs, strict=True)
        return float(np.polyfit(values, times, 1)[0])

    @property
    def failures(self) -> list[str]:
        """What is wrong with the outputs, in words; empty where all agree."""
        return [
            f"{point.name} differs at {point.value} {point.axis}: error {point.max_error:.2g}. No "
            "speed-up is given for it"
            for point in self.points
            if not point.agrees
        ]
