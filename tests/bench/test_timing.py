"""Cases take turns, rounds are compared within themselves, and the statistics are those claimed."""

import pytest

from modes_fx.bench.timing import (
    Moment,
    Spread,
    Stopwatch,
    Timing,
    faster,
    fastest,
    interleaved,
    interleaved_calls,
    median,
    ratio,
    read_clocks,
    relative_spread,
    summarise,
)


class FakeClock:
    """Time that passes only when told; one processor in two is busy."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> Moment:
        return Moment(self.now, self.now / 2)

    def case(self, *seconds: float):
        """A case that takes each of these times in turn."""
        coming = iter(seconds)

        def run(stopwatch: Stopwatch) -> None:
            self.now += next(coming)
            stopwatch.lap("total")

        return run


def test_every_case_runs_once_a_round_after_the_warmup():
    clock = FakeClock()
    cases = {"a": clock.case(100, 1, 2), "b": clock.case(100, 3, 4)}
    samples = interleaved(cases, rounds=2, warmup=1, clock=clock)
    assert samples == {
        "a": {"total": [Moment(1, 0.5), Moment(2, 1)]},
        "b": {"total": [Moment(3, 1.5), Moment(4, 2)]},
    }


def test_no_case_always_runs_after_the_same_one():
    order = []

    def case(name: str):
        def run(stopwatch: Stopwatch) -> None:
            order.append(name)
            stopwatch.lap("total")

        return run

    interleaved({name: case(name) for name in "abc"}, rounds=3, warmup=0)
    assert "".join(order) == "abcbcacab"


def test_phases_are_measured_apart_and_repeated_ones_added_up():
    clock = FakeClock()
    stopwatch = Stopwatch(clock)
    for phase, seconds in (("prefill", 5), ("decode", 1), ("decode", 2)):
        clock.now += seconds
        stopwatch.lap(phase)
    assert stopwatch.phases == {"prefill": Moment(5, 2.5), "decode": Moment(3, 1.5)}


def test_the_speedup_is_the_median_of_ratios_within_rounds():
    # Each round is slower than the one before, as on a machine that gets busy; the ratio is steady.
    base = [Moment(wall, wall) for wall in (1.0, 10.0, 100.0)]
    half = [Moment(wall / 2, wall) for wall in (1.0, 10.0, 100.0)]
    summary = summarise({"base": {"total": base}, "fast": {"total": half}}, "total", "base")
    assert summary["fast"] == Timing(
        wall=Spread(5.0, 2.75, 27.5), cpu=Spread(10.0, 5.5, 55.0), speedup=Spread(2.0, 2.0, 2.0)
    )
    assert summary["base"].speedup == Spread(1.0, 1.0, 1.0)


def test_progress_is_told_after_each_measured_round():
    told = []
    interleaved(
        {"a": lambda stopwatch: stopwatch.lap("total")}, rounds=3, warmup=2, on_round=told.append
    )
    assert told == [1, 2, 3]


@pytest.mark.parametrize(
    ("laps", "said"), [([[], []], "none"), ([["total"], ["total", "extra"]], "'extra': 1")]
)
def test_a_case_that_measures_nothing_or_something_else_each_round_is_refused(laps, said):
    coming = iter(laps)

    def run(stopwatch: Stopwatch) -> None:
        for phase in next(coming):
            stopwatch.lap(phase)

    with pytest.raises(ValueError, match=said):
        interleaved({"odd": run}, rounds=2, warmup=0)


def test_the_real_clocks_run_forward():
    before = read_clocks()
    assert read_clocks().since(before).wall >= 0


def test_the_fastest_case_is_the_one_that_is_faster_within_rounds():
    # "b" is faster in two of the three rounds, but its median time is the larger one.
    walls = {"a": (1.0, 5.0, 2.0), "b": (3.0, 4.0, 1.9), "c": (0.1, 0.1, 0.1)}
    samples = {name: {"total": [Moment(w, 0.0) for w in row]} for name, row in walls.items()}
    assert fastest(samples, "total", ["a", "b"]) == "b"


def test_a_short_call_is_repeated_and_a_sample_is_the_time_of_one():
    clock, made = FakeClock(), {"short": 0, "long": 0}

    def call(name: str, seconds: float):
        def run() -> None:
            made[name] += 1
            clock.now += seconds

        return run

    calls = {"short": call("short", 0.5), "long": call("long", 10)}
    samples = interleaved_calls(calls, rounds=3, sample_seconds=5, clock=clock)
    # Two to see how long it takes; then a warm-up and three rounds.
    assert made == {"short": 2 + 10 * 4, "long": 2 + 4}
    assert samples == {"short": [Moment(0.5, 0.25)] * 3, "long": [Moment(10, 5)] * 3}


def test_the_faster_of_some_depends_on_the_clock():
    samples = {"busy": [Moment(1, 3), Moment(1, 3)], "waiting": [Moment(2, 1), Moment(2, 1)]}
    assert faster(samples, ["busy", "waiting"], "wall") == "busy"
    assert faster(samples, ["busy", "waiting"], "cpu") == "waiting"


def test_ratios_are_computed_within_a_round():
    slow, fast = [Moment(4, 0), Moment(40, 0)], [Moment(1, 0), Moment(10, 0)]
    assert ratio(slow, fast, "wall") == Spread(4, 4, 4)
    assert median(slow, "wall") == 22
    assert relative_spread(slow, "wall") == pytest.approx(18 / 22)
