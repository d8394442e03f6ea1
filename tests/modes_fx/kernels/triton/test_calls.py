"""Launches can be counted, and left out."""

import torch

from modes_fx.kernels.triton import compaction
from modes_fx.kernels.triton.calls import recorded


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
