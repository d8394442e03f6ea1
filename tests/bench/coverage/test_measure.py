"""A type is measured against the unmodified model and the oracle."""

from modes_fx.bench.coverage.measure import measure
from modes_fx.bench.coverage.record import Verdict


def test_a_rewritten_model_is_right_in_prefill_and_decode():
    record = measure("mixtral")
    assert record.verdict is Verdict.PASSED
    assert record.matched == len(record.layers) == 2
    assert record.static_cache
    assert record.fullgraph
    assert len(record.calls) == 3
    for call in record.calls:
        assert call.graphs_after_thresholds == 0
        assert call.effect > 1e-3 > call.error_skipping
        assert 0 < call.kept["text"] < call.pairs["text"]


def test_a_rewrite_that_ignores_thresholds_is_silently_wrong(monkeypatch):
    def keep_everything(index, weight, *_):
        return index.clone(), weight.clone()

    monkeypatch.setattr("modes_fx.passes.rewrite.GATE", keep_everything)
    record = measure("mixtral")
    assert record.verdict is Verdict.WRONG
    assert any("half skipped" in mistake for mistake in record.mistakes)


def test_a_model_that_cannot_be_run_is_excluded_with_its_traceback():
    record = measure("qwen3_omni_moe")
    assert record.verdict is Verdict.EXCLUDED
    assert "Traceback" in record.traceback


def test_a_crash_of_the_rewritten_model_is_a_failure(monkeypatch):
    def crash(*_, **__):
        raise RuntimeError("no such expert")

    monkeypatch.setattr("modes_fx.bench.coverage.measure.attach", crash)
    record = measure("mixtral")
    assert record.verdict is Verdict.FAILED
    assert "no such expert" in record.failure
