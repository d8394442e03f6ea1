"""Every type is measured in a process of its own."""

import json

from modes_fx.bench.coverage.record import Record, Verdict
from modes_fx.bench.coverage.sweep import measure_apart, sweep


def test_a_hang_is_a_result():
    record = measure_apart("mixtral", timeout=0.1)
    assert record.verdict is Verdict.FAILED
    assert "not done after" in record.failure


def test_a_resumed_sweep_keeps_the_records_there_are(tmp_path):
    known = Record("mixtral", failure="as it was", seconds=1.5)
    (tmp_path / "mixtral.json").write_text(json.dumps(known.to_json()))
    seen: list[Record] = []
    done = sweep(["mixtral"], tmp_path, jobs=1, timeout=1, resume=True, on_record=seen.append)
    assert done == seen == [known]
