"""Processes share the work, agree on results, and fail together."""

import subprocess
import sys

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
