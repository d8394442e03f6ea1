"""Compare the time of several cases on a machine that is never quiet.

The cases take turns, so that a busy moment hits all of them, and every speed-up is computed within
a round. Medians and quartiles over the rounds are what is reported.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class Moment(NamedTuple):
    """A reading of both clocks, or the time between two readings, in seconds.

    Attributes:
        wall: what passes for whoever waits.
        cpu: what all threads of this process use of the processors.
    """

    wall: float
    cpu: float

    def since(self, earlier: "Moment") -> "Moment":
        """Return the time between an earlier reading and this one."""
        return Moment(self.wall - earlier.wall, self.cpu - earlier.cpu)


ClockName = Literal["wall", "cpu"]
Clock = Callable[[], Moment]
Samples = dict[str, list[Moment]]
"""By phase, one duration a round."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    lower: float
    upper: float

    @staticmethod
    def of(values: list[float]) -> "Spread":
        """Summarise at least one value."""
        lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
        return Spread(float(median), float(lower), float(upper))


@dataclass(frozen=True)
class Timing:
    """How long one phase of one case took, over the rounds.

    Attributes:
        wall: seconds.
        cpu: seconds of processor time.
        speedup: the baseline's wall time over this case's in the same round; above 1 is faster.
    """

    wall: Spread
    cpu: Spread
    speedup: Spread


class Stopwatch:
    """Measures the phases of one run, one after another."""

    def __init__(self, clock: Clock) -> None:
        """Start the first phase."""
        self._clock = clock
        self._start = clock()
        self.phases: dict[str, Moment] = {}

    def lap(self, phase: str) -> None:
        """End a phase and start the next; time of a phase that comes again is added."""
        now = self._clock()
        passed, so_far = now.since(self._start), self.phases.get(phase, Moment(0.0, 0.0))
        self.phases[phase] = Moment(so_far.wall + passed.wall, so_far.cpu + passed.cpu)
        self._start = now


Case = Callable[[Stopwatch], object]
"""Runs once what is to be timed, and ends each of its phases with ``stopwatch.lap(name)``."""


def read_clocks() -> Moment:
    """Read the wall clock and the process's processor time."""
    return Moment(time.perf_counter(), time.process_time())


def interleaved(
    cases: Mapping[str, Case],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Clock = read_clocks,
    on_round: Callable[[int], None] = lambda done: None,
) -> dict[str, Samples]:
    """Run every case once a round, starting each round with another case.

    Args:
        cases: by name; compilation and whatever else happens once belongs before this call or
            into the warm-up.
        rounds: how many rounds are measured.
        warmup: how many rounds come before those.
        clock: what tells the time.
        on_round: called with the number of rounds that were measured, after each.

    Returns:
        For each case, in the order given, its samples by phase.

    Raises:
        ValueError: a case measured no phase, or not the same phases in all rounds.
    """
    samples: dict[str, Samples] = {name: {} for name in cases}
    names = list(cases)
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            stopwatch = Stopwatch(clock)
            cases[name](stopwatch)
            if number >= 0:
                for phase, duration in stopwatch.phases.items():
                    samples[name].setdefault(phase, []).append(duration)
        if number >= 0:
            on_round(number + 1)
    for name, phases in samples.items():
        if not phases or any(len(durations) != rounds for durations in phases.values()):
            counts = {phase: len(durations) for phase, durations in phases.items()}
            raise ValueError(
                f"case {name!r} must end the same phases in each of the {rounds} rounds with "
                f"stopwatch.lap(name), but the phases it ended are {counts or 'none'}"
            )
    return samples


def interleaved_calls(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    sample_seconds: float = 0.005,
    clock: Clock = read_clocks,
) -> dict[str, list[Moment]]:
    """Time single calls in turns; a short one is repeated, so that reading the clock costs nothing.

    Args:
        calls: by name.
        rounds: how many samples are taken of each.
        sample_seconds: what a sample takes at least, about.
        clock: what tells the time.

    Returns:
        For each, in every round, the time of one call.
    """
    repeats = {name: _repeats(call, sample_seconds, clock) for name, call in calls.items()}

    def case(name: str) -> Case:
        def run(stopwatch: Stopwatch) -> None:
            for _ in range(repeats[name]):
                calls[name]()
            stopwatch.lap("calls")

        return run

    samples = interleaved({name: case(name) for name in calls}, rounds, clock=clock)
    return {
        name: [
            Moment(moment.wall / repeats[name], moment.cpu / repeats[name])
            for moment in phases["calls"]
        ]
        for name, phases in samples.items()
    }


def _repeats(call: Callable[[], object], sample_seconds: float, clock: Clock) -> int:
    call()
    started = clock()
    call()
    return max(1, math.ceil(sample_seconds / max(clock().since(started).wall, 1e-7)))


def fastest(samples: Mapping[str, Samples], phase: str, names: Sequence[str]) -> str:
    """Return the case that is the fastest of some in a phase, by wall time; see :func:`faster`."""
    return faster({name: samples[name][phase] for name in names}, names, "wall")


def faster(samples: Mapping[str, Sequence[Moment]], names: Sequence[str], by: ClockName) -> str:
    """Return the fastest of some by one of the clocks.

    It has the smallest median of its time relative to all of them in the same round, so that a case
    does not win by a few quiet moments.
    """
    times = np.array([_times(samples[name], by) for name in names])
    relative = np.median(times / times.mean(axis=0), axis=1)
    return names[int(relative.argmin())]


def median(samples: Sequence[Moment], by: ClockName) -> float:
    """Return the median of some durations by one of the clocks."""
    return float(np.median(_times(samples, by)))


def relative_spread(samples: Sequence[Moment], by: ClockName) -> float:
    """Return the interquartile range of some durations, as a share of their median."""
    spread = Spread.of(_times(samples, by))
    return (spread.upper - spread.lower) / spread.median


def ratio(baseline: Sequence[Moment], own: Sequence[Moment], by: ClockName) -> Spread:
    """Return how many times as long the baseline takes, computed within each round."""
    pairs = zip(_times(baseline, by), _times(own, by), strict=True)
    return Spread.of([base / mine for base, mine in pairs])


def _times(samples: Sequence[Moment], by: ClockName) -> list[float]:
    return [getattr(moment, by) for moment in samples]


def summarise(samples: Mapping[str, Samples], phase: str, baseline: str) -> dict[str, Timing]:
    """Summarise one phase of every case.

    Args:
        samples: from :func:`interleaved`.
        phase: which phase.
        baseline: the case that the speed-ups are relative to.

    Raises:
        KeyError: there is no such phase or case.
    """
    reference = samples[baseline][phase]
    return {
        name: Timing(
            wall=Spread.of([duration.wall for duration in phases[phase]]),
            cpu=Spread.of([duration.cpu for duration in phases[phase]]),
            speedup=ratio(reference, phases[phase], "wall"),
        )
        for name, phases in samples.items()
    }
