"""``h[mask] += v`` without a shape that depends on data."""

import torch
from torch import nn
from torch.export import Dim
from torch.testing import assert_close

from modes_fx.export.masked_add import spread_masked_adds

NONZERO = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default)


class Adds(nn.Module):
    def forward(self, h, mask, v):
        h = h.clone()
        h[mask, :] = h[mask, :] + v
        return h * 2


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


def test_rows_are_looked_up_and_added() -> None:
    program = export(Adds())
    assert spread_masked_adds(program) == 1
    assert not [node for node in program.graph.nodes if node.target in NONZERO]
    program.graph.lint()
    for batch, length in ((3, 5), (2, 9), (6, 2)):
        call = inputs(batch, length)
        assert_close(program.module()(*call), Adds()(*call))


def test_what_only_overwrites_is_left_alone() -> None:
    assert spread_masked_adds(export(Overwrites())) == 0
