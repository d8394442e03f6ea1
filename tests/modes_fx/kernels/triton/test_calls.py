"""Launches can be counted, and left out."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from modes_fx.kernels.triton import compaction
from modes_fx.kernels.triton.calls import launch, recorded
from modes_fx.kernels.triton.limits import DeviceLimitError


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


class Greedy:
    """A kernel that needs more than any device has."""

    __name__ = "greedy"

    @property
    def fn(self) -> "Greedy":
        return self

    def __getitem__(self, grid):
        def run(*args) -> None:
            raise OutOfResources(300000, 232448, "shared memory")

        return run


def test_a_kernel_that_does_not_fit_is_an_error_of_ours() -> None:
    with pytest.raises(DeviceLimitError, match=r"greedy does not fit .* 300000"):
        launch(Greedy(), (1,), torch.zeros(1))
