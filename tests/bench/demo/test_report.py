"""report.json holds what other tools read, under the names they rely on."""

import json

import pytest

from modes_fx.bench.demo.comparison import MODES, RANDOM
from modes_fx.bench.demo.report import DemoReport


def test_the_json_has_the_promised_fields(report):
    fields = json.loads(report.model_dump_json())
    assert {"moe_layers", "matched", "tau0_max_error", "full", "results", "timing"} <= set(fields)
    assert fields["full"]["accuracy"] == 0.95
    for result in fields["results"]:
        assert {
            "method",
            "target",
            "skip_ratio",
            "skip_ratio_by_modality",
            "skip_ratio_by_layer",
            "accuracy",
            "accuracy_interval",
            "kl",
        } <= set(result)


def test_the_json_reads_back_as_the_same_report(report):
    assert DemoReport.model_validate_json(report.model_dump_json()) == report


def test_an_unknown_field_is_refused(report):
    fields = {**json.loads(report.model_dump_json()), "surprise": 1}
    with pytest.raises(ValueError, match="surprise"):
        DemoReport.model_validate(fields)


def test_a_result_is_found_by_method_and_target(report):
    assert report.result(RANDOM, 0.88).method == RANDOM
    with pytest.raises(KeyError, match=r"0\.6"):
        report.result(MODES, 0.6)
