"""The schema of the JSON file that ``modes-fx bench layer`` writes.

Times are in milliseconds, rates in 10^9 per second, ratios above 1 mean that ours is faster.
"""

from typing import Literal

from modes_fx.bench.environment import Environment, Section
from modes_fx.bench.layer.weights import Layout
from modes_fx.bench.timing import Spread

SCHEMA_VERSION = 1
NOISY = 0.5
"""The spread above which a row is not believed."""
TRANSFORMERS = ("hf_eager", "hf_grouped")
"""The two ways that run at every size; the faster one is the baseline."""


class LayerRow(Section):
    """One implementation at one number of tokens and one skip ratio.

    Attributes:
        shape: the layer.
        tokens: T.
        skip: the skip ratio asked for.
        achieved_skip: the share of pairs that the gate skipped.
        dtype: of weights and tokens.
        threads: that the process may compute with.
        impl: the implementation.
        layout: of its weights.
        cpu_ms: processor time of a call, all threads together; the median.
        wall_ms: time that passes during a call; the median.
        spread: the interquartile range of the time by ``clock``, as a share of its median.
        gflops: useful operations per second, by the row's clock: those of pairs that are kept.
        gbps: bytes per second that must be read and written at least.
        of_gemm_ceiling: ``gflops`` as a share of the GEMM ceiling.
        of_bandwidth_ceiling: ``gbps`` as a share of the bandwidth ceiling.
        of_floor: what the two ceilings allow, the larger of both times, as a share of the time.
        max_error: the worst token's error against float32.
        agrees: whether that is within the tolerance; where not, no ratio is given to or by it.
        speedups: by implementation: its time at skip 0 over this row's, in the same round.
        speedup: the same over the faster of transformers' two ways at this size.
        routing_ms: time of the gate and of sorting the kept pairs by expert.
        routing_share: ``routing_ms`` as a share of the time.
    """

    shape: str
    tokens: int
    skip: float
    achieved_skip: float
    dtype: str
    threads: int
    impl: str
    layout: Layout
    cpu_ms: float
    wall_ms: float
    spread: float
    gflops: float
    gbps: float
    of_gemm_ceiling: float
    of_bandwidth_ceiling: float
    of_floor: float
    max_error: float
    agrees: bool
    speedups: dict[str, Spread]
    speedup: Spread | None = None
    routing_ms: float | None = None
    routing_share: float | None = None


class SizeSection(Section):
    """What belongs to all rows of one number of tokens.

    Attributes:
        tokens: T.
        gemm_gflops: the GEMM ceiling in the same rounds.
        read_gbps: the bandwidth ceiling in the same rounds.
        baseline: the faster of transformers' two ways; None where none of them was timed.
        rotated_mb: megabytes of weights between two uses of the same, at the largest skip ratio.
    """

    tokens: int
    gemm_gflops: float
    read_gbps: float
    baseline: str | None
    rotated_mb: float


class LayerBench(Section):
    """All that was measured in one run.

    Attributes:
        version: of this schema.
        environment: where and with what.
        capability: the instruction set that torch uses.
        cache_mib: the last-level cache.
        clock: what ratios and rates are computed by: processor time with one thread, else wall
            time.
        rounds: how often every row was timed; the median is given.
        copies: how many layers with weights of their own took turns.
        gemm: what the GEMM ceiling is.
        reader: what the bandwidth ceiling is.
        tolerance: of ``max_error``.
        sizes: one for each number of tokens.
        rows: one for each implementation, layout, number of tokens and skip ratio.
        left_out: what was asked for and not timed, and why.
    """

    version: int = SCHEMA_VERSION
    environment: Environment
    capability: str
    cache_mib: float
    clock: Literal["cpu", "wall"]
    rounds: int
    copies: int
    gemm: str
    reader: str
    tolerance: float
    sizes: list[SizeSection]
    rows: list[LayerRow]
    left_out: list[str]

    @property
    def noise(self) -> list[str]:
        """What is too noisy to be believed, in words; empty where nothing is."""
        noisy = sum(row.spread > NOISY for row in self.rows)
        return [
            f"{noisy} of {len(self.rows)} rows spread by more than {NOISY:.0%}: the machine is "
            "busy. Believe no ratio of this run; run it again on an idle machine"
        ][: min(noisy, 1)]

    @property
    def failures(self) -> list[str]:
        """What is wrong with the outputs, in words; empty where all agree."""
        return [
            f"{row.impl} ({row.layout}) differs at {row.tokens} tokens and skip {row.skip:g}: "
            f"error {row.max_error:.2g}, tolerance {self.tolerance:g}. No speed-up is given for it"
            for row in self.rows
            if not row.agrees
        ]
