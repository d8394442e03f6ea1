"""Launches can be counted, and left out."""

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from modes_fx.kernels.triton import compaction
from modes_fx.kernels.triton.calls import launch, recorded
from modes_fx.kernels.triton.limits import DeviceLimitError
from modes_fx.kernels.triton.plan import UnsupportedBodyError


def test_launches_are_recorded_with_their_grid_and_arguments(device) -> None:
    index = torch.zeros(3, 2, dtype=torch.long, device=device)
    with recorded() as calls:
        slots = compaction.compact(index, 4, 16)
    (call,) = calls
    assert (call.name, call.grid) == ("sort_pairs", (1,))
    assert call.args[0] is index
    assert slots.expert_start.tolist() == [0, 6, 6, 6, 6]


def test_recorded_launches_need_not_run() -> None:
    index = torch.empty(3000, 2, dtype=torch.long, device="meta")
    with recorded(run=False) as calls:
        compaction.compact(index, 4, 16)
    assert [call.name for call in calls] == ["count_blocks", "place_blocks"]


class Failing:
    """A kernel that a device or the compiler refuses."""

    __name__ = "failing"

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def fn(self) -> "Failing":
        return self

    def __getitem__(self, grid):
        def run(*args) -> None:
            raise self.error

        return run


def test_a_kernel_that_does_not_fit_is_an_error_of_ours() -> None:
    greedy = Failing(OutOfResources(300000, 232448, "shared memory"))
    with pytest.raises(DeviceLimitError, match=r"failing does not fit .* 300000"):
        launch(greedy, (1,), torch.zeros(1))


def test_a_kernel_that_does_not_compile_is_an_error_of_ours() -> None:
    broken = Failing(CompilationError(None, None, "no such type"))
    with pytest.raises(UnsupportedBodyError, match=r"(?s)failing does not compile: .*no such type"):
        launch(broken, (1,), torch.zeros(1))
