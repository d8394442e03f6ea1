"""The sentences follow the numbers, also where they are not in our favour."""

import re

import pytest

from modes_fx.bench.demo.comparison import OURS, RANDOM, SINGLE_THRESHOLD
from modes_fx.bench.demo.findings import findings, verdict
from modes_fx.bench.demo.report import DemoReport


def with_interval(report: DemoReport, method: str, interval: tuple[float, float]) -> DemoReport:
    """The report, with a method's difference to the default at each target replaced."""
    change = {"ahead_of_default": sum(interval) / 2, "ahead_of_default_interval": interval}
    results = [
        result.model_copy(update=change) if result.method == method else result
        for result in report.results
    ]
    return report.model_copy(update={"results": results})


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.01, 0.05), "better than the default"),
        ((-0.05, -0.01), "worse"),
        ((-0.01, 0.05), "not told apart from it"),
    ],
)
def test_a_method_is_better_or_worse_only_where_its_interval_says_so(report, interval, words):
    changed = with_interval(report, SINGLE_THRESHOLD, interval)
    assert verdict(changed.result(SINGLE_THRESHOLD, 0.5)) == words
    sentences = [sentence for sentence in findings(changed) if sentence.startswith("Target")]
    assert len(sentences) == 2
    for sentence in sentences:
        assert re.search(f"{words}: [^;.]*{SINGLE_THRESHOLD}", sentence)


def test_the_default_has_no_verdict_on_itself(report):
    assert verdict(report.result(OURS, 0.5)) == ""


def test_the_least_kl_is_named_whoever_has_it(report):
    results = [
        result.model_copy(update={"kl": 1e-9}) if result.method == RANDOM else result
        for result in report.results
    ]
    sentences = findings(report.model_copy(update={"results": results}))
    assert sum("The least KL has random." in sentence for sentence in sentences) == 2


def test_being_slower_than_the_baseline_is_said(report):
    assert sum("None of ours is faster" in sentence for sentence in findings(report)) == 2


def test_other_tokens_at_tau_0_are_said(report):
    tau0 = report.tau0.model_copy(update={"tokens_equal": False})
    assert "generates other tokens" in findings(report.model_copy(update={"tau0": tau0}))[0]
