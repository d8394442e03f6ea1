"""What is measured of a model's generation, as it is stored."""

from modes_fx.bench.demo.report import TimingSection
from modes_fx.bench.environment import Environment, Section

SCHEMA_VERSION = 1


class Compilation(Section):
    """One way, compiled in processes of its own, on the first batch.

    Attributes:
        way: its name.
        cold_seconds: the first ``generate``, with empty compile caches.
        warm_seconds: the same in another process, with what the first one left in the caches.
        graphs: captured for that.
        recompiled: graphs captured by calls after it: other targets, or the same again.
        peak_bytes: the most memory the process took, in the second process.
        weight_bytes: of the model's parameters.
    """

    way: str
    cold_seconds: float
    warm_seconds: float
    graphs: int
    recompiled: int
    peak_bytes: int
    weight_bytes: int


class EndToEnd(Section):
    """All that was measured in one run.

    Attributes:
        version: of this schema.
        environment: where and with what.
        model: its name or folder.
        layers: with experts.
        dtype: of the weights.
        policy: the folder it came from, or "preset": thresholds without calibration.
        compiler: of everything that is compiled.
        skipped: by target, the share of pairs that the first batch skips in ``generate``.
        batches: one timing for each batch size.
        compilations: of the ways that are compiled; empty where that was not asked for.
    """

    version: int = SCHEMA_VERSION
    environment: Environment
    model: str
    layers: int
    dtype: str
    policy: str
    compiler: str
    skipped: dict[float, float]
    batches: list[TimingSection]
    compilations: list[Compilation]

    @property
    def failures(self) -> list[str]:
        """What is wrong with the outputs, in words; rounding may change tokens below float32."""
        if self.dtype != "float32":
            return []
        return [
            f"batch {timing.batch}: compiled with nothing skipped, generate gave other tokens than "
            "the unmodified model. Run `modes-fx explain` on it, and report it"
            for timing in self.batches
            if not timing.tokens_equal
        ]
