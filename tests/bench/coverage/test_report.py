"""The report shows what is wrong first."""

import json

import pytest

from modes_fx.bench.coverage.record import CallRecord, Record, Verdict
from modes_fx.bench.coverage.report import as_data, as_markdown, write

LAYER = "model.layers.0.mlp.experts"


def call(**changes: object) -> CallRecord:
    """A call without a mistake, but for the changes."""
    right = CallRecord(
        layers=[LAYER],
        rewritten=[LAYER],
        error_all_kept=1e-7,
        error_skipping=2e-7,
        effect=0.3,
        kept={"text": 5},
        kept_by_oracle={"text": 5},
        pairs={"text": 10},
        pairs_by_oracle={"text": 10},
        graphs=1,
    )
    return CallRecord(**{**vars(right), **changes})


def record(name: str, *calls: CallRecord, **changes: object) -> Record:
    return Record(name, layers=[LAYER], calls=list(calls), **changes)


@pytest.mark.parametrize(
    ("calls", "mistake"),
    [
        ([call(error_all_kept=1e-3)], "prefill: all kept: relative error 1.0e-03"),
        ([call(), call(error_skipping=0.2)], "decode step 1: half skipped: relative error 2.0e-01"),
        ([call(error_skipping=float("inf"))], "prefill: half skipped: relative error inf"),
        ([call(kept={"text": 4})], "prefill: kept pairs {'text': 4}, by the oracle {'text': 5}"),
        (
            [call(pairs={"text": 8, "vision": 2})],
            "prefill: pairs by modality {'text': 8, 'vision': 2}, by the oracle {'text': 10}",
        ),
    ],
)
def test_a_mistake_makes_a_type_silently_wrong(calls, mistake):
    wrong = record("wrong", *calls)
    assert wrong.verdict is Verdict.WRONG
    assert wrong.mistakes == [mistake]
    assert "**SILENTLY WRONG**" in as_markdown([wrong])
    assert mistake in as_markdown([wrong])


def test_a_type_passes_only_if_every_layer_is_rewritten_in_every_call():
    assert record("a", call(), call()).verdict is Verdict.PASSED
    assert (
        record(
            "b",
            call(),
            call(rewritten=[], pairs={}, pairs_by_oracle={}, kept={}, kept_by_oracle={}),
        ).verdict
        is Verdict.LEFT
    )


def test_a_call_in_which_an_error_would_not_show_does_not_pass():
    assert record("blind", call(effect=1e-6)).verdict is Verdict.FAILED


def test_a_config_without_an_moe_layer_does_not_pass():
    assert Record("dense", calls=[call()]).verdict is Verdict.FAILED


def test_only_the_unmodified_models_traceback_takes_a_type_out_of_the_denominator():
    records = [
        record("right", call()),
        record("crashed", failure="Traceback: ours"),
        Record("unbuilt", traceback="Traceback\nValueError: no"),
    ]
    data = as_data(records)
    assert (data["passed"], data["denominator"]) == (1, 2)
    assert "**1 of 2** types pass" in as_markdown(records)
    assert "ValueError: no" in as_markdown(records)


def test_the_files_hold_the_same_records(tmp_path):
    records = [record("right", call()), record("wrong", call(error_all_kept=1.0))]
    write(records, tmp_path / "page.md", tmp_path / "data.json")
    stored = json.loads((tmp_path / "data.json").read_text())["types"]
    assert [Record.from_json(entry) for entry in stored] == records
    assert (tmp_path / "page.md").read_text() == as_markdown(records)


def test_tracebacks_do_not_say_where_this_machine_keeps_its_packages():
    trace = 'File "/home/me/.venv/lib/python3.11/site-packages/torch/nn/x.py", line 1'
    stored = as_data([Record("unbuilt", traceback=trace)])["types"][0]["traceback"]
    assert stored == 'File "site-packages/torch/nn/x.py", line 1'
