"""``h[mask] = v`` and ``h[mask] += v`` without a shape that depends on data."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.testing import assert_close

from modes_fx.export.masked_rows import spread_masked_rows

aten = torch.ops.aten
NONZERO = (aten.index.Tensor, aten.index_put.default, aten.masked_scatter.default)


class Adds(nn.Module):
    def forward(self, h, mask, v):
        h = h.clone()
        h[mask, :] = h[mask, :] + v
        return h * 2


class Scatters(nn.Module):
    def forward(self, h, mask, v):
        return h.masked_scatter(mask[..., None].expand_as(h), v * 2)


class ScattersParts(nn.Module):
    """A near miss: the mask picks parts of rows."""

    def forward(self, h, mask, v):
        parts = (h > 0) & mask[..., None]
        return h.masked_scatter(parts, v.repeat(2, 1))


class Overwrites(nn.Module):
    """A near miss: nothing is added."""

    def forward(self, h, mask, v):
        h = h.clone()
        h[mask, :] = v * 2
        return h


def inputs(batch, length, share=0.4):
    generator = torch.Generator().manual_seed(batch)
    mask = torch.rand(batch, length, generator=generator) < share
    v = torch.randn(int(mask.sum()), 4, generator=generator)
    return torch.randn(batch, length, 4, generator=generator), mask, v


def export(module):
    sizes = ({0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO, 1: Dim.AUTO}, {0: Dim.AUTO})
    program = torch.export.export(module, inputs(3, 5), dynamic_shapes=sizes)
    return program.run_decompositions({})


@pytest.mark.parametrize("module", [Adds(), Scatters()], ids=["add", "scatter"])
def test_rows_are_looked_up(module) -> None:
    program = export(module)
    assert spread_masked_rows(program) == 1
    assert not [node for node in program.graph.nodes if node.target in NONZERO]
    program.graph.lint()
    for batch, length in ((3, 5), (2, 9), (6, 2)):
        call = inputs(batch, length)
        assert_close(program.module()(*call), module(*call))


@pytest.mark.parametrize("module", [Overwrites(), ScattersParts()], ids=["put", "parts"])
def test_other_writes_are_left_alone(module) -> None:
    assert spread_masked_rows(export(module)) == 0
