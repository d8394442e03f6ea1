"""Steps are numbered, timed, and say what they found."""

import io

from rich.console import Console

from modes_fx.bench.demo.steps import Steps


def test_steps_are_numbered_timed_and_reported():
    console = Console(file=io.StringIO(), width=100)
    steps = Steps(console, total=2)
    with steps.step("load", "Load the model") as advance:
        advance(0.5)
    steps.say("found [8] layers")
    with steps.step("calibrate", "Calibrate", bar=False):
        pass
    shown = console.file.getvalue()
    assert "[1/2] Load the model: 0 s" in shown
    assert "found [8] layers" in shown
    assert "[2/2] Calibrate: 0 s" in shown
    assert list(steps.seconds) == ["load", "calibrate"]
    assert all(seconds >= 0 for seconds in steps.seconds.values())
