"""The grouped dispatch: what has grouped GEMMs over a stacked weight, yet no experts to choose."""

import pytest
import torch
from torch.testing import assert_close

from tests.tiny import GroupedExperts, compile_observed, routed_tokens


class FixedGroups(GroupedExperts):
    """Groups of rows of a fixed size, as in a grouped convolution: nothing chooses them."""

    def forward(self, x, index, weight):
        sizes = torch.full((self.num_experts,), 2, dtype=torch.int32)
        rows = x.repeat_interleave(2, dim=0)
        rows = self.activation(self.grouped(rows, self.up, sizes.cumsum(0, dtype=torch.int32)))
        rows = self.grouped(rows, self.down, sizes.cumsum(0, dtype=torch.int32))
        return (rows.view(len(x), 2, -1) * weight[..., None]).sum(1)


class SortedSegments(GroupedExperts):
    """Rows sorted by the segment they belong to, one each, and given back sorted."""

    def forward(self, x, index, weight):
        ordered, perm = torch.sort(index[:, 0])
        offsets = self.counts(ordered).cumsum(0, dtype=torch.int32)
        rows = self.activation(self.grouped(x[perm], self.up, offsets))
        return self.grouped(rows, self.down, offsets)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (FixedGroups(), "in a way that no pattern knows"),
        (SortedSegments(), "does not come from an integer matrix"),
    ],
)
def test_grouped_products_without_a_choice_of_experts_are_left_alone(model, reason) -> None:
    torch.compiler.reset()
    inputs = routed_tokens(tokens=6)
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert [report.status for report in reports] == ["refused"]
    assert reason in reports[0].reason
