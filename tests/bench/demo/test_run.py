"""What makes the demo fail, and what does not."""

import math

import pytest

from modes_fx.bench.demo.run import find_failures


def test_a_good_report_has_no_failures(report):
    assert find_failures(report.tau0, report.timing) == []


@pytest.mark.parametrize("error", [2e-5, math.nan])
def test_an_error_above_the_limit_fails_and_names_the_input(report, error):
    tau0 = report.tau0.model_copy(update={"errors": {"text only": 1e-7, "two images": error}})
    (failure,) = find_failures(tau0, report.timing)
    assert "two images" in failure
    assert "1e-05" in failure


def test_other_tokens_fail_whichever_compiler_gave_them(report):
    tau0 = report.tau0.model_copy(update={"tokens_equal": False})
    timing = report.timing.model_copy(update={"tokens_equal": False})
    assert len(find_failures(tau0, timing)) == 2
