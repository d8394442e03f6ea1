"""What skipping costs: the scores of two evaluations side by side."""

from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

from pydantic import BaseModel, ConfigDict

from modes_fx.evaluation.confidence import paired_difference


class Score(BaseModel):
    """One metric of one task.

    Attributes:
        task: its name.
        metric: of the task.
        documents: how many were answered.
        baseline: the score with every expert.
        skipping: with a policy.
        difference: of the two, over the documents; None where a document has no score of its own.
        interval: of the difference, at 95 %, documents drawn anew in pairs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    metric: str
    documents: int
    baseline: float
    skipping: float
    difference: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def recovery(self) -> float | None:
        """The share of the baseline's score that is left, the paper's measure."""
        return self.skipping / self.baseline if self.baseline else None


class Comparison(BaseModel):
    """The scores of one policy and target.

    Attributes:
        skipped: the share of (token, expert) pairs that were skipped; None where all answers were
            taken from an earlier run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    policy: str
    target: float | None
    skipped: float | None
    scores: list[Score]

    @property
    def recovery(self) -> float | None:
        """The mean over tasks, by the first metric of each."""
        first: dict[str, float] = {}
        for score in self.scores:
            if score.recovery is not None:
                first.setdefault(score.task, score.recovery)
        return sum(first.values()) / len(first) if first else None


def compare(
    model: str,
    policy: str,
    target: float | None,
    baseline: Mapping[str, Any],
    skipping: Mapping[str, Any],
) -> Comparison:
    """Compare two results of lmms-eval on the same documents.

    Raises:
        ValueError: they are of other tasks or documents.
    """
    scores = []
    for task, samples in baseline["samples"].items():
        others = skipping["samples"].get(task)
        ids = [sample["doc_id"] for sample in samples]
        if others is None or [sample["doc_id"] for sample in others] != ids:
            raise ValueError(f"{task}: the two evaluations are not of the same documents")
        for key, value in baseline["results"][task].items():
            metric = key.partition(",")[0]
            other = skipping["results"][task].get(key)
            if "_stderr" in metric or not (_is_number(value) and _is_number(other)):
                continue
            found = _paired(samples, others, metric)
            scores.append(
                Score(
                    task=task,
                    metric=metric,
                    documents=len(ids),
                    baseline=value,
                    skipping=other,
                    difference=found and found[0],
                    interval=found and found[1],
                )
            )
    return Comparison(
        model=model,
        policy=policy,
        target=target,
        skipped=skipping.get("skipped"),
        scores=scores,
    )


def render(comparison: Comparison) -> str:
    """Return it as a Markdown table."""
    lines = [
        f"{comparison.model}, policy {comparison.policy}, target {comparison.target}",
        "",
        "| task | metric | documents | baseline | skipping | recovery | difference, 95 % |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for one in comparison.scores:
        recovery = "" if one.recovery is None else f"{one.recovery:.1%}"
        difference = ""
        if one.difference is not None and one.interval is not None:
            low, high = one.interval
            difference = f"{one.difference:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {one.task} | {one.metric} | {one.documents} | {one.baseline:.4g} | "
            f"{one.skipping:.4g} | {recovery} | {difference} |"
        )
    if comparison.skipped is not None:
        lines += ["", f"Pairs skipped: {comparison.skipped:.1%}"]
    if comparison.recovery is not None:
        lines += ["", f"Recovery, mean over tasks: {comparison.recovery:.1%}"]
    return "\n".join(lines) + "\n"


def _paired(
    samples: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], metric: str
) -> tuple[float, tuple[float, float]] | None:
    scores: list[list[Any]] = [[one.get(metric) for one in some] for some in (others, samples)]
    if not scores[0] or not all(_is_number(value) for some in scores for value in some):
        return None
    return paired_difference(*scores)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number)
