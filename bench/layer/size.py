"""One number of tokens: compare every implementation's output, then time them in turns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from modes_fx.bench.layer import ours
from modes_fx.bench.layer.calls import Call, Cycle, make_cycle
from modes_fx.bench.layer.ceilings import Ceiling
from modes_fx.bench.layer.implementations import OURS, OURS_INT8, Implementation
from modes_fx.bench.layer.oracle import TOLERANCE, expected, largest_error
from modes_fx.bench.layer.report import TRANSFORMERS, LayerRow, SizeSection
from modes_fx.bench.layer.weights import Layer, Layout, Runner
from modes_fx.bench.layer.work import work_of
from modes_fx.bench.timing import (
    ClockName,
    Moment,
    faster,
    interleaved_calls,
    median,
    ratio,
    relative_spread,
)


class Prepared(NamedTuple):
    """An implementation that can run."""

    implementation: Implementation
    layout: Layout
    run: Runner


class Entry(NamedTuple):
    """What becomes a row."""

    impl: str
    layout: Layout
    skip: float

    def __str__(self) -> str:
        """A name that no other entry has."""
        return f"{self.impl}, {self.layout}, skip {self.skip:g}"


Samples = Mapping[str, Sequence[Moment]]
"""By name, the time of one call in every round."""

GEMM, READ = "GEMM ceiling", "bandwidth ceiling"


def clock_for(threads: int) -> ClockName:
    """Return what rates and ratios are computed by.

    Processor time leaves out what other processes take away, so one thread is timed by it; what
    several threads gain only wall time shows.
    """
    return "cpu" if threads == 1 else "wall"


class Size:
    """A layer called with one number of tokens.

    Attributes:
        left_out: implementations that are not timed at this size, and why.
    """

    def __init__(
        self, layer: Layer, tokens: int, skips: Sequence[float], prepared: Iterable[Prepared]
    ) -> None:
        """Make the calls.

        Args:
            layer: the layer.
            tokens: T.
            skips: skip ratios.
            prepared: what to time.
        """
        self._layer, self._tokens = layer, tokens
        self._cycles: dict[float, Cycle] = {
            skip: make_cycle(layer.shape, tokens, skip, layer.dtype, len(layer.copies))
            for skip in skips
        }
        self._runners: dict[Entry, Runner] = {}
        self._implementations: dict[str, Implementation] = {}
        self.left_out: list[str] = []
        self._position = count()
        for implementation, layout, run in prepared:
            if reason := implementation.left_out(layer, tokens):
                self.left_out.append(f"{implementation.name}, {tokens} tokens: {reason}")
                continue
            self._implementations[implementation.name] = implementation
            for skip in filter(implementation.runs_at, skips):
                self._runners[Entry(implementation.name, layout, skip)] = run

    def measure(
        self, gemm: Ceiling, reader: Ceiling, rounds: int, threads: int
    ) -> tuple[SizeSection, list[LayerRow]]:
        """Compare the outputs, time everything in turns, and make the rows.

        Args:
            gemm: timed along.
            reader: timed along.
            rounds: how often everything is timed.
            threads: that torch uses.
        """
        errors = self._errors()
        samples = self._time(gemm, reader, rounds)
        clock = clock_for(threads)
        tolerance = TOLERANCE[self._layer.dtype]
        right = [str(entry) for entry, error in errors.items() if error <= tolerance]
        dense = {str(Entry(way, "default", 0.0)): way for way in TRANSFORMERS}
        ways = [name for name in dense if name in right]
        section = SizeSection(
            tokens=self._tokens,
            gemm_gflops=gemm.amount / median(samples[GEMM], clock) / 1e9,
            read_gbps=reader.amount / median(samples[READ], clock) / 1e9,
            baseline=dense[faster(samples, ways, clock)] if ways else None,
            rotated_mb=min(cycle.streamed for cycle in self._cycles.values()) / 1e6,
        )
        return section, [
            self._row(entry, error, section, samples, right, threads)
            for entry, error in errors.items()
        ]

    def _errors(self) -> dict[Entry, float]:
        first = {skip: cycle.calls[0] for skip, cycle in self._cycles.items()}
        errors = {}
        for truth in dict.fromkeys(one.truth for one in self._implementations.values()):
            layer = truth(self._layer)
            right = {skip: expected(layer, call) for skip, call in first.items()}
            for entry, run in self._runners.items():
                if self._implementations[entry.impl].truth is truth:
                    errors[entry] = largest_error(run(first[entry.skip]), right[entry.skip])
        return {entry: errors[entry] for entry in self._runners}

    def _time(self, gemm: Ceiling, reader: Ceiling, rounds: int) -> Samples:
        calls = {GEMM: gemm.run, READ: reader.run}
        for entry, run in self._runners.items():
            calls[str(entry)] = self._turns(entry.skip, run)
        for skip in self._cycles:
            calls[_routing(skip)] = self._turns(skip, self._route)
        return interleaved_calls(calls, rounds)

    def _turns(self, skip: float, run: Callable[[Call], object]) -> Callable[[], object]:
        """Make calls of the cycle one after another, whoever makes them."""
        calls = self._cycles[skip].calls
        return lambda: run(calls[next(self._position) % len(calls)])

    def _route(self, call: Call) -> None:
        ours.route(self._layer, call)

    def _row(
        self,
        entry: Entry,
        error: float,
        section: SizeSection,
        samples: Samples,
        right: Sequence[str],
        threads: int,
    ) -> LayerRow:
        shape, dtype, cycle = self._layer.shape, self._layer.dtype, self._cycles[entry.skip]
        clock, own = clock_for(threads), samples[str(entry)]
        seconds = median(own, clock)
        weight_bytes = self._implementations[entry.impl].weight_bytes
        work = work_of(shape, self._tokens, cycle.kept, cycle.hit, dtype, weight_bytes)
        gflops, gbps = work.flops / seconds / 1e9, work.bytes / seconds / 1e9
        floor = work.floor(section.gemm_gflops * 1e9, section.read_gbps * 1e9)
        speedups = {}
        if str(entry) in right:
            dense = {one.impl: str(one) for one in self._runners if one.skip == 0}
            speedups = {
                impl: ratio(samples[name], own, clock)
                for impl, name in dense.items()
                if name in right and impl not in (entry.impl, OURS, OURS_INT8)
            }
        routing = median(samples[_routing(entry.skip)], clock) if entry.impl == OURS else None
        return LayerRow(
            shape=shape.name,
            tokens=self._tokens,
            skip=entry.skip,
            achieved_skip=cycle.skip_ratio,
            dtype=str(dtype).removeprefix("torch."),
            threads=threads,
            impl=entry.impl,
            layout=entry.layout,
            cpu_ms=1e3 * median(own, "cpu"),
            wall_ms=1e3 * median(own, "wall"),
            spread=relative_spread(own, clock),
            gflops=gflops,
            gbps=gbps,
            of_gemm_ceiling=gflops / section.gemm_gflops,
            of_bandwidth_ceiling=gbps / section.read_gbps,
            of_floor=floor / seconds,
            max_error=error,
            agrees=str(entry) in right,
            speedups=speedups,
            speedup=speedups.get(section.baseline or ""),
            routing_ms=None if routing is None else 1e3 * routing,
            routing_share=None if routing is None else routing / seconds,
        )


def _routing(skip: float) -> str:
    return f"routing, skip {skip:g}"
