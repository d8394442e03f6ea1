"""Processes share the work, agree on results, and fail together."""

import subprocess
import sys
import warnings

import pytest

from modes_fx.calibration.processes import Processes

TOGETHER = """
from modes_fx.calibration.processes import Processes

processes = Processes()
assert processes.count == 2
shares = processes.gather(lambda: list(processes.share_of(5)))
assert shares == [[0, 2, 4], [1, 3]], shares
assert processes.on_main(lambda: f"from {processes.index}") == "from 0"


def fail_in(index):
    if processes.index == index:
        raise ValueError("a torn image")


for call, index in ((processes.gather, 1), (processes.on_main, 0)):
    try:
        call(lambda: fail_in(index))
    except ValueError as error:
        assert processes.index == index and str(error) == "a torn image"
    except RuntimeError as error:
        assert processes.index != index and "failed: ValueError: a torn image" in str(error)
    else:
        raise AssertionError("it did not fail in both")
open(f"agreed-{processes.index}", "w").close()
processes.close()
"""


def test_two_processes_agree_and_fail_together(tmp_path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, script], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "agreed-0").exists()
    assert (tmp_path / "agreed-1").exists()


def test_one_process_does_all_and_raises_what_it_meets() -> None:
    alone = Processes()
    assert (alone.index, alone.count, alone.is_main) == (0, 1, True)
    assert list(alone.share_of(3)) == [0, 1, 2]
    assert alone.gather(lambda: "mine") == ["mine"]
    for call in (alone.gather, alone.on_main):
        with pytest.raises(ZeroDivisionError):
            call(lambda: 1 / 0)


LAUNCHED_FOR_SEVERAL = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}


def test_a_process_that_was_to_be_one_of_several_says_how_to_start_them(monkeypatch) -> None:
    for name, value in LAUNCHED_FOR_SEVERAL.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="'accelerate launch --multi_gpu --num_processes N' or"):
        assert Processes().count == 1


@pytest.mark.parametrize("missing", sorted(LAUNCHED_FOR_SEVERAL))
def test_one_process_that_was_asked_for_says_nothing(monkeypatch, missing) -> None:
    for name, value in LAUNCHED_FOR_SEVERAL.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Processes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "alone"),
    [(["--cpu", "--num_processes", "2"], True), (["--cpu", "--num_processes", "1"], False)],
)
def test_accelerate_leaves_what_the_warning_looks_for(tmp_path, options, alone) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "from modes_fx.calibration.processes import Processes\nprint(Processes().count)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, script]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert ("started this one alone" in done.stderr) == alone
