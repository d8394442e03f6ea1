"""Tables, JSON and plot of a measured generation."""

import pytest

from modes_fx.bench.demo.report import TimedCase, TimingSection
from modes_fx.bench.end_to_end.render import end_to_end_markdown, save_end_to_end
from modes_fx.bench.end_to_end.report import Compilation, EndToEnd
from modes_fx.bench.environment import describe_environment
from modes_fx.bench.timing import Spread, Timing


def timing(seconds: float, speedup: float) -> Timing:
    spread = Spread(seconds, seconds * 0.9, seconds * 1.1)
    return Timing(wall=spread, cpu=spread, speedup=Spread(speedup, speedup, speedup))


def case(name: str, target: float | None = None, *, ours: bool = False) -> TimedCase:
    return TimedCase(
        name=name,
        compile_seconds=None,
        target=target,
        ours=ours,
        prefill=timing(0.2, 1.5),
        decode=timing(0.1, 1.25),
        decode_tokens_per_second=160.0,
    )


@pytest.fixture
def bench() -> EndToEnd:
    batches = [
        TimingSection(
            batch=batch,
            prompt_tokens=29,
            new_tokens=17,
            rounds=3,
            prefill_baseline="HF",
            decode_baseline="HF",
            tokens_equal=True,
            cases=[case("HF"), case("ours"), case("ours at 50%", 0.5, ours=True)],
        )
        for batch in (1, 4)
    ]
    compiled = Compilation(
        way="ours",
        cold_seconds=60,
        warm_seconds=6,
        graphs=9,
        recompiled=0,
        peak_bytes=900_000_000,
        weight_bytes=20_000_000,
    )
    return EndToEnd(
        environment=describe_environment(),
        model="demo",
        layers=8,
        dtype="float32",
        policy="preset",
        compiler="inductor",
        skipped={0.5: 0.487},
        batches=batches,
        compilations=[compiled],
    )


def test_the_tables_say_what_was_reached_and_against_what(bench) -> None:
    page = end_to_end_markdown(bench)
    assert "| ours at 50% | 48.7% | 200.0 | 20% | 1.50x | 160.0 | 20% | 1.25x |" in page
    assert page.count("**Batch ") == 2
    assert "| ours | 60.0 | 6.0 | 9 | 0 | 900 | 20 |" in page
    assert "it tells of speed only" in page


def test_everything_is_written_and_reads_back(bench, tmp_path) -> None:
    save_end_to_end(bench, tmp_path / "out")
    stored = (tmp_path / "out" / "end_to_end.json").read_text(encoding="utf-8")
    assert EndToEnd.model_validate_json(stored) == bench
    assert (tmp_path / "out" / "end_to_end.png").stat().st_size > 1000


def test_other_tokens_are_a_failure_in_float32_only(bench) -> None:
    changed = [one.model_copy(update={"tokens_equal": False}) for one in bench.batches[:1]]
    wrong = bench.model_copy(update={"batches": changed})
    assert "batch 1" in wrong.failures[0]
    assert "**Failed**: batch 1" in end_to_end_markdown(wrong)
    assert not wrong.model_copy(update={"dtype": "bfloat16"}).failures
    assert not bench.failures
