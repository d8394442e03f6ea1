"""The schema of the JSON file that ``modes-fx bench model`` writes.

Times are in milliseconds, of the whole prompt in prefill and of one token in decode.
"""

from typing import Literal

from modes_fx.bench.environment import Environment, Section
from modes_fx.bench.layer.weights import Layout
from modes_fx.bench.model.phases import Phase
from modes_fx.bench.timing import Spread

SCHEMA_VERSION = 1


class WayRow(Section):
    """One way to run one phase at one skip ratio.

    Attributes:
        way: which.
        layout: of the experts' weights.
        phase: prefill or decode.
        skip: the skip ratio asked for; 0 for all ways that cannot skip.
        achieved_skip: the share of pairs that is skipped.
        cpu_ms: processor time, the median.
        wall_ms: wall time, the median.
        spread: the interquartile range of the time by the bench's clock, as a share of its median.
        error: the median token's distance from transformers' own loop, with the weights of
            skipped pairs set to zero.
        agrees: whether that is within the tolerance; where not, no ratio is given.
        speedup: transformers' best compiled way over this one, in the same round.
        over_fastest: the same over its fastest way, compiled or not.
        kernel_gain: the same at skip 0: what is gained without skipping.
        skipping_gain: this way at skip 0 over this row.
        bound: the speed-up of transformers' best compiled way with its experts at their floor.
        of_bound: ``speedup`` as a share of ``bound``.
        experts_share: of the time, what is spent beyond the model without experts; None where it
            takes less than that, because it saves elsewhere too.
    """

    way: str
    layout: Layout
    phase: Phase
    skip: float
    achieved_skip: float
    cpu_ms: float
    wall_ms: float
    spread: float
    error: float
    agrees: bool
    speedup: Spread | None = None
    over_fastest: float | None = None
    kernel_gain: float | None = None
    skipping_gain: float | None = None
    bound: float | None = None
    of_bound: float | None = None
    experts_share: float | None = None


class PhaseSection(Section):
    """One phase of transformers' best compiled way, and its parts.

    Attributes:
        phase: prefill or decode.
        tokens: of one call.
        baseline: transformers' best compiled way, found by measurement.
        total_ms: its time.
        experts_ms: what the model without experts takes less.
        attention_ms: what that takes less without attention and its projections.
        rest_ms: what is left: routers, norms, embeddings, the vision tower, the language head.
        fastest: transformers' fastest way, compiled or not.
        fastest_ms: its time.
        floor_ms: by skip ratio, of all layers' experts: the larger of computing and reading at
            the ceilings.
    """

    phase: Phase
    tokens: int
    baseline: str
    total_ms: float
    experts_ms: float
    attention_ms: float
    rest_ms: float
    fastest: str
    fastest_ms: float
    floor_ms: dict[float, float]


class ModelBench(Section):
    """All that was measured in one run.

    Attributes:
        version: of this schema.
        environment: where and with what.
        capability: the instruction set that torch uses.
        compiler: of everything that is compiled.
        model: which.
        layers: of the language model.
        prompt: tokens of the prompt.
        image_tokens: of those, tokens of the image.
        dtype: of weights.
        threads: that torch may use.
        clock: what ratios are computed by.
        rounds: how often everything was timed.
        gemm_gflops: the GEMM ceiling in the same rounds.
        read_gbps: the bandwidth ceiling in the same rounds.
        tolerance: of ``error``.
        peak_gb: the most memory the process took.
        phases: prefill and decode.
        rows: one for each way, phase and skip ratio.
    """

    version: int = SCHEMA_VERSION
    environment: Environment
    capability: str
    compiler: str
    model: str
    layers: int
    prompt: int
    image_tokens: int
    dtype: str
    threads: int
    clock: Literal["cpu", "wall"]
    rounds: int
    gemm_gflops: float
    read_gbps: float
    tolerance: float
    peak_gb: float
    phases: list[PhaseSection]
    rows: list[WayRow]

    @property
    def failures(self) -> list[str]:
        """What is wrong with the outputs, in words; empty where all agree."""
        return [
            f"{row.way} ({row.layout}) differs in {row.phase} at skip {row.skip:g}: error "
            f"{row.error:.2g}, tolerance {self.tolerance:g}. No speed-up is given for it"
            for row in self.rows
            if not row.agrees
        ]
