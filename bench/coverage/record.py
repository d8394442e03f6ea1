"""What is known of one type after it was measured, and the verdict on it."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

TOLERANCE = 1e-5
"""Largest error allowed in float32, as a fraction of the largest logit."""

VISIBLE = 1e-3
"""Smallest effect of skipping with which a wrong rewrite would show."""


class Verdict(StrEnum):
    """How a type did.

    ``WRONG`` is the only one that must never occur: the output is not what it should be, although
    nothing said so.
    """

    PASSED = "passed"
    LEFT = "not rewritten"
    FAILED = "failed"
    WRONG = "silently wrong"
    EXCLUDED = "excluded"


@dataclass
class CallRecord:
    """One call: the prefill, or a decode step. Errors are fractions of the largest logit.

    Attributes:
        layers: MoE layers that the unmodified model ran in this call.
        rewritten: those of them that were rewritten, and so gated.
        error_all_kept: against the unmodified model, with thresholds that keep all.
        error_skipping: against the oracle, with thresholds that skip about half of the pairs.
        effect: how much the oracle's skipping changes the output: what a wrong rewrite would cost.
        kept: kept pairs, as counted by the op; ``kept_by_oracle`` likewise.
        pairs: all pairs of the gated layers, as counted by the op; ``pairs_by_oracle`` likewise.
        graphs: graphs captured for this call.
        graphs_after_thresholds: graphs captured again after the thresholds were changed.
    """

    layers: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    error_all_kept: float | None = None
    error_skipping: float | None = None
    effect: float | None = None
    kept: dict[str, int] = field(default_factory=dict)
    kept_by_oracle: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    pairs_by_oracle: dict[str, int] = field(default_factory=dict)
    graphs: int = 0
    graphs_after_thresholds: int = 0

    @property
    def proves_nothing(self) -> bool:
        """Whether pairs were skipped, but the output would hardly differ if they were not."""
        return bool(self.rewritten) and (self.effect is None or self.effect < VISIBLE)

    def mistakes(self) -> list[str]:
        """Return what is wrong with this call, in words."""
        found = []
        for name, error in (
            ("all kept", self.error_all_kept),
            ("half skipped", self.error_skipping),
        ):
            if error is not None and not error <= TOLERANCE:
                found.append(f"{name}: relative error {error:.1e}")
        if self.pairs != self.pairs_by_oracle:
            found.append(f"pairs by modality {self.pairs}, by the oracle {self.pairs_by_oracle}")
        elif self.kept != self.kept_by_oracle:
            found.append(f"kept pairs {self.kept}, by the oracle {self.kept_by_oracle}")
        return found


@dataclass
class Record:
    """One type.

    Attributes:
        model_type: the type, or ``outer+inner``.
        layers: MoE layers that the unmodified model ran in any call, as the oracle saw them.
        image: whether there was an image in the call.
        image_traceback: why there was none, though the type takes images.
        static_cache: whether decoding used a static cache.
        calls: the prefill, then the decode steps.
        reasons: by layer, why it was not rewritten.
        breaks: graph breaks, in the words of Dynamo.
        original_fullgraph: whether the unmodified model compiles into one graph.
        original_graphs: how many graphs the unmodified model has, for each call.
        original_graphs_again: how many more when the calls are made again.
        fullgraph: whether ours does.
        fullgraph_error: why not, where the unmodified model does.
        traceback: of the unmodified model, where it could not be built or run.
        failure: of ours, where the unmodified model runs.
        seconds: how long all of it took.
    """

    model_type: str
    layers: list[str] = field(default_factory=list)
    image: bool = False
    image_traceback: str = ""
    static_cache: bool = False
    calls: list[CallRecord] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    original_fullgraph: bool = False
    original_graphs: list[int] = field(default_factory=list)
    original_graphs_again: int = 0
    fullgraph: bool = False
    fullgraph_error: str = ""
    traceback: str = ""
    failure: str = ""
    seconds: float = 0.0

    @property
    def mistakes(self) -> list[str]:
        """What is wrong, in words."""
        return [
            f"{'prefill' if number == 0 else f'decode step {number}'}: {mistake}"
            for number, call in enumerate(self.calls)
            for mistake in call.mistakes()
        ]

    @property
    def matched(self) -> int:
        """How many MoE layers are rewritten in every call that they take part in."""
        left = {path for call in self.calls for path in call.layers if path not in call.rewritten}
        return len(self.layers) - len(left)

    @property
    def graphs_again(self) -> int:
        """How many more graphs were captured after the thresholds were changed."""
        return sum(call.graphs_after_thresholds for call in self.calls)

    @property
    def verdict(self) -> Verdict:
        """How the type did."""
        if self.traceback:
            return Verdict.EXCLUDED
        if self.mistakes:
            return Verdict.WRONG
        if self.failure or not self.layers or any(call.proves_nothing for call in self.calls):
            return Verdict.FAILED
        return Verdict.PASSED if self.matched == len(self.layers) else Verdict.LEFT

    def to_json(self) -> dict[str, Any]:
        """Return the record and the verdict as plain data."""
        return {
            "verdict": self.verdict.value,
            "matched": self.matched,
            "mistakes": self.mistakes,
            **asdict(self),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Record":
        """Read what :meth:`to_json` returned."""
        known = {name: data[name] for name in Record.__dataclass_fields__}
        return Record(**{**known, "calls": [CallRecord(**call) for call in data["calls"]]})
