"""What the timings of a whole model say: ratios, shares, and the bound."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from modes_fx.bench.layer.ceilings import Ceiling
from modes_fx.bench.layer.work import work_of
from modes_fx.bench.model.phases import DECODE, DECODE_STEPS, PHASES, Phase
from modes_fx.bench.model.reference import Reference
from modes_fx.bench.model.report import PhaseSection, WayRow
from modes_fx.bench.model.ways import HF_WAYS, WITHOUT_BOTH, WITHOUT_EXPERTS, Way
from modes_fx.bench.shapes import LayerShape
from modes_fx.bench.timing import (
    ClockName,
    Moment,
    Samples,
    faster,
    median,
    ratio,
    relative_spread,
)

RUN = "run"
PARTS = (WITHOUT_EXPERTS, WITHOUT_BOTH)


class Entry(NamedTuple):
    """A way at a skip ratio."""

    way: Way
    skip: float

    def __str__(self) -> str:
        """A name that no other entry has."""
        return f"{self.way.name}, {self.way.layout}, skip {self.skip:g}"


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        shape: of the experts.
        layers: of the language model.
        tokens: of one call, by phase.
        dtype: of weights.
        clock: what ratios are computed by.
        tolerance: of errors.
        entries: what was timed.
        references: by skip ratio.
        errors: by entry and phase.
        samples: by entry, and of the two ceilings.
        gemm: the ceiling of computing.
        reader: the ceiling of reading.
    """

    shape: LayerShape
    layers: int
    tokens: Mapping[Phase, int]
    dtype: torch.dtype
    clock: ClockName
    tolerance: float
    entries: Sequence[Entry]
    references: Mapping[float, Reference]
    errors: Mapping[tuple[str, Phase], float]
    samples: Mapping[str, Samples]
    gemm: Ceiling
    reader: Ceiling

    @property
    def gemm_rate(self) -> float:
        """Operations per second at the GEMM ceiling."""
        return self.gemm.amount / median(self.samples[self.gemm.name][RUN], self.clock)

    @property
    def read_rate(self) -> float:
        """Bytes per second at the bandwidth ceiling."""
        return self.reader.amount / median(self.samples[self.reader.name][RUN], self.clock)

    def floor(self, phase: Phase, skip: float) -> float:
        """Return the seconds that the experts of all layers take at least in one call."""
        reference = self.references[skip]
        work = work_of(
            self.shape,
            self.tokens[phase],
            reference.kept[phase],
            reference.hit[phase],
            self.dtype,
        )
        return self.layers * work.floor(self.gemm_rate, self.read_rate)

    def section(self, phase: Phase) -> PhaseSection:
        """Return transformers' best compiled way in a phase, and its parts."""
        baseline, fastest = self._baseline(phase), self._fastest(phase, HF_WAYS)
        assert fastest is not None
        total, without, rest = (
            1e3 * self._median(self._entry(name), phase) for name in (baseline, *PARTS)
        )
        return PhaseSection(
            phase=phase,
            tokens=self.tokens[phase],
            baseline=baseline,
            total_ms=total,
            experts_ms=total - without,
            attention_ms=without - rest,
            rest_ms=rest,
            fastest=fastest,
            fastest_ms=1e3 * self._median(self._entry(fastest), phase),
            floor_ms={skip: 1e3 * self.floor(phase, skip) for skip in self.references},
        )

    def rows(self) -> list[WayRow]:
        """Return a row for each way, phase and skip ratio; the model's parts are none."""
        return [
            self._row(entry, phase)
            for phase in PHASES
            for entry in self.entries
            if phase in entry.way.phases and entry.way.name not in PARTS
        ]

    def _row(self, entry: Entry, phase: Phase) -> WayRow:
        own, reference = self._calls(entry, phase), self.references[entry.skip]
        error = self.errors[str(entry), phase]
        row = WayRow(
            way=entry.way.name,
            layout=entry.way.layout,
            phase=phase,
            skip=entry.skip,
            achieved_skip=1 - reference.kept[phase] / reference.pairs[phase],
            cpu_ms=1e3 * median(own, "cpu"),
            wall_ms=1e3 * median(own, "wall"),
            spread=relative_spread(own, self.clock),
            error=error,
            agrees=error <= self.tolerance,
        )
        if not row.agrees:
            return row
        best = self._calls(self._entry(self._baseline(phase)), phase)
        fastest = self._fastest(phase, HF_WAYS)
        assert fastest is not None
        speedup = ratio(best, own, self.clock)
        without = self._median(self._entry(WITHOUT_EXPERTS), phase)
        over_fastest = ratio(self._calls(self._entry(fastest), phase), own, self.clock).median
        row = row.model_copy(update={"speedup": speedup, "over_fastest": over_fastest})
        if not entry.way.ours:
            return row
        dense = self._calls(Entry(entry.way, 0.0), phase)
        bound = median(best, self.clock) / (without + self.floor(phase, entry.skip))
        seconds = median(own, self.clock)
        return row.model_copy(
            update={
                "kernel_gain": ratio(best, dense, self.clock).median,
                "skipping_gain": ratio(dense, own, self.clock).median,
                "bound": bound,
                "of_bound": speedup.median / bound,
                "experts_share": 1 - without / seconds if without < seconds else None,
            }
        )

    def _fastest(self, phase: Phase, among: Collection[str]) -> str | None:
        names = {str(entry): entry.way.name for entry in self.entries if entry.way.name in among}
        timed = [
            name
            for name in names
            if phase in self.samples[name] and self.errors[name, phase] <= self.tolerance
        ]
        samples = {name: self.samples[name][phase] for name in timed}
        return names[faster(samples, timed, self.clock)] if timed else None

    def _baseline(self, phase: Phase) -> str:
        compiled = self._fastest(phase, [name for name, way in HF_WAYS.items() if way.compiled])
        if compiled is None:
            raise ValueError(
                f"no compiled way of transformers was timed in {phase}, or its output differs: "
                "name one of the baselines that are compiled"
            )
        return compiled

    def _entry(self, way: str) -> Entry:
        return next(entry for entry in self.entries if entry.way.name == way)

    def _median(self, entry: Entry, phase: Phase) -> float:
        return median(self._calls(entry, phase), self.clock)

    def _calls(self, entry: Entry, phase: Phase) -> list[Moment]:
        calls = DECODE_STEPS if phase == DECODE else 1
        return [
            Moment(moment.wall / calls, moment.cpu / calls)
            for moment in self.samples[str(entry)][phase]
        ]
