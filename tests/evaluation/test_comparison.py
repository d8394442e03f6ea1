"""Two evaluations side by side: scores, what is left of them, and how much is chance."""

import pytest

from modes_fx.evaluation.comparison import compare, render


def results(right: list[float], **more: float):
    samples = [{"doc_id": i, "accuracy": score} for i, score in enumerate(right)]
    scores = {
        "alias": "task",
        "accuracy,none": sum(right) / len(right),
        "accuracy_stderr,none": 0.01,
        **{f"{name},none": value for name, value in more.items()},
    }
    return {"results": {"task": scores}, "samples": {"task": samples}}


BASELINE = results([1.0, 1.0, 1.0, 0.0] * 25, cider=2.0)
SKIPPING = results([1.0, 1.0, 0.0, 0.0] * 25, cider=1.5)


def test_scores_recovery_and_paired_interval() -> None:
    comparison = compare("model", "policy", 0.75, BASELINE, SKIPPING)
    accuracy, cider = comparison.scores
    assert (accuracy.metric, accuracy.documents) == ("accuracy", 100)
    assert (accuracy.baseline, accuracy.skipping) == (0.75, 0.5)
    assert accuracy.recovery == pytest.approx(2 / 3)
    assert accuracy.difference == pytest.approx(-0.25)
    low, high = accuracy.interval
    assert -0.35 < low < -0.25 < high < -0.15
    assert (cider.recovery, cider.interval) == (0.75, None)
    assert comparison.recovery == pytest.approx(2 / 3), "the first metric of each task"


def test_the_table_says_the_same() -> None:
    page = render(compare("model", "policy", 0.75, BASELINE, SKIPPING))
    assert "| task | accuracy | 100 | 0.75 | 0.5 | 66.7% | -0.250 (" in page
    assert "| task | cider | 100 | 2 | 1.5 | 75.0% |  |" in page
    assert "Recovery, mean over tasks: 66.7%" in page


def test_a_baseline_of_zero_has_no_recovery() -> None:
    comparison = compare("model", "policy", 0.5, results([0.0, 0.0]), results([0.0, 1.0]))
    assert comparison.scores[0].recovery is None
    assert comparison.recovery is None


def test_other_documents_are_refused() -> None:
    with pytest.raises(ValueError, match="task: the two evaluations are not of the same documents"):
        compare("model", "policy", 0.5, results([1.0, 1.0]), results([1.0]))
