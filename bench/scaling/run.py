"""Measure: for each place of each axis, all implementations in turns on the same calls."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import torch

from modes_fx.bench.environment import describe_environment, last_level_cache
from modes_fx.bench.layer.calls import Cycle, copies_needed, make_cycle
from modes_fx.bench.layer.implementations import IMPLEMENTATIONS, OURS
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.report import TRANSFORMERS
from modes_fx.bench.layer.size import clock_for
from modes_fx.bench.layer.weights import Layer, Runner
from modes_fx.bench.scaling.report import Axis, Point, Scaling
from modes_fx.bench.shapes import LayerShape
from modes_fx.bench.threads import torch_threads
from modes_fx.bench.timing import (
    ClockName,
    Moment,
    faster,
    interleaved_calls,
    median,
    ratio,
    relative_spread,
)

WEIGHTS_AT_MOST = 10**9
"""Bytes of weights that copies of a layer may take; few tokens may find more of them in a cache."""


@dataclass(frozen=True)
class ScalingPlan:
    """What to measure.

    Attributes:
        shape: the layer; all but what an axis varies stays as it says.
        tokens: lengths of one prompt.
        batches: numbers of sequences that decode one token each.
        experts: numbers of experts of a layer.
        layers: numbers of layers.
        prompt: T where experts or layers are varied.
        skips: skip ratios.
        dtype: of weights and tokens.
        threads: that torch may use.
        rounds: how often everything is timed.
        cache: bytes of the last-level cache; None asks the system.
    """

    shape: LayerShape
    tokens: Sequence[int] = (64, 256, 1024)
    batches: Sequence[int] = (1, 4, 16, 64)
    experts: Sequence[int] = (8, 16, 32, 64)
    layers: Sequence[int] = (1, 2, 4, 8)
    prompt: int = 256
    skips: Sequence[float] = (0.0, 0.5, 0.88)
    dtype: torch.dtype = torch.bfloat16
    threads: int = 1
    rounds: int = 7
    cache: int | None = None

    def places(self) -> Iterator["Place"]:
        """Give what is measured, in order."""
        for tokens in sorted(self.tokens):
            yield Place("tokens", tokens, self.shape, tokens, 1)
        for batch in sorted(self.batches):
            yield Place("batch", batch, self.shape, batch, 1)
        for experts in sorted(self.experts):
            yield Place("experts", experts, self.shape.with_experts(experts), self.prompt, 1)
        for layers in sorted(self.layers):
            yield Place("layers", layers, self.shape, self.prompt, layers)


class Place(NamedTuple):
    """A place of an axis, and what is called there."""

    axis: Axis
    value: int
    shape: LayerShape
    tokens: int
    layers: int


class Entry(NamedTuple):
    """An implementation at a skip ratio, and what it is called with."""

    impl: str
    skip: float
    run: Runner
    cycle: Cycle

    @property
    def name(self) -> str:
        """A name that no other entry of the place has."""
        return f"{self.impl} {self.skip:g}"


def bench_scaling(
    plan: ScalingPlan, on_progress: Callable[[str], None] = lambda doing: None
) -> Scaling:
    """Measure.

    Args:
        plan: what to measure.
        on_progress: told what is being done.

    Raises:
        ValueError: a skip ratio outside of 0 to 1, or fewer experts than a token takes.
    """
    if few := [n for n in plan.experts if n < plan.shape.top_k]:
        raise ValueError(f"a token takes {plan.shape.top_k} experts of a layer, which has {few[0]}")
    cache = last_level_cache() if plan.cache is None else plan.cache
    points: list[Point] = []
    with torch_threads(plan.threads), torch.inference_mode():
        for place in plan.places():
            on_progress(f"{place.value} {place.axis}")
            points += _measure(place, plan, cache)
        return Scaling(
            environment=describe_environment(),
            shape=plan.shape.name,
            top_k=plan.shape.top_k,
            dtype=str(plan.dtype).removeprefix("torch."),
            clock=clock_for(plan.threads),
            rounds=plan.rounds,
            points=points,
        )


def _measure(place: Place, plan: ScalingPlan, cache: int) -> list[Point]:
    layer = _build(place, plan, cache)
    entries = list(_entries(place, plan, layer))
    errors = {entry.name: _error(layer, entry) for entry in entries}
    samples = interleaved_calls(
        {entry.name: _in_turns(entry, place.layers) for entry in entries}, plan.rounds
    )
    clock, tolerance = clock_for(plan.threads), TOLERANCE[plan.dtype]
    right = [e.name for e in entries if e.impl != OURS and errors[e.name] <= tolerance]
    baseline = samples[faster(samples, right, clock)] if right else None
    return [
        _point(place, entry, samples[entry.name], baseline, errors[entry.name], tolerance, clock)
        for entry in entries
    ]


def _build(place: Place, plan: ScalingPlan, cache: int) -> Layer:
    one = place.shape.experts * place.shape.expert_parameters * plan.dtype.itemsize
    skip = max(plan.skips)
    needed = copies_needed(place.shape, place.tokens, skip, plan.dtype, cache)
    copies = max(place.layers, min(needed, WEIGHTS_AT_MOST // one))
    return Layer.build(place.shape, plan.dtype, copies)


def _entries(place: Place, plan: ScalingPlan, layer: Layer) -> Iterator[Entry]:
    torch.compiler.reset()
    ours = IMPLEMENTATIONS[OURS].prepare(layer, "default")
    cycles = {
        skip: make_cycle(place.shape, place.tokens, skip, plan.dtype, len(layer.copies))
        for skip in dict.fromkeys((0.0, *plan.skips))
    }
    for name in TRANSFORMERS:
        run = IMPLEMENTATIONS[name].prepare(layer, "default")
        yield Entry(name, 0.0, run, cycles[0.0])
    for skip in plan.skips:
        yield Entry(OURS, skip, ours, cycles[skip])


def _error(layer: Layer, entry: Entry) -> float:
    call = entry.cycle.calls[0]
    return largest_error(entry.run(call), expected(layer, call))


def _in_turns(entry: Entry, layers: int) -> Callable[[], None]:
    """Call so many layers, the next ones of the cycle each time."""
    calls, position = entry.cycle.calls, count()

    def run() -> None:
        for _ in range(layers):
            entry.run(calls[next(position) % len(calls)])

    return run


def _point(
    place: Place,
    entry: Entry,
    own: Sequence[Moment],
    baseline: Sequence[Moment] | None,
    error: float,
    tolerance: float,
    clock: ClockName,
) -> Point:
    agrees = error <= tolerance
    return Point(
        axis=place.axis,
        value=place.value,
        tokens=place.tokens,
        experts=place.shape.experts,
        layers=place.layers,
        impl=entry.impl,
        skip=entry.skip,
        achieved_skip=entry.cycle.skip_ratio,
        cpu_ms=1e3 * median(own, "cpu"),
        wall_ms=1e3 * median(own, "wall"),
        spread=relative_spread(own, clock),
        max_error=error,
        agrees=agrees,
        speedup=ratio(baseline, own, clock) if agrees and baseline is not None else None,
    )
