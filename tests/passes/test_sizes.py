"""Sizes that depend on data get numbers that fit together."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from modes_fx.passes.sizes import is_known, value_of


def picked_rows(width: int) -> torch.Tensor:
    """Rows picked by a mask of every element, as they look while a model is captured."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty(4, width)
        return x[x > 0].view(-1, width)


def test_numbers_are_made_up_for_what_depends_on_data() -> None:
    rows = picked_rows(width=24)
    pairs = torch.cat((rows, rows)).shape[0]
    assert not is_known(rows.shape[0])
    assert value_of(rows.shape[0]) > 1
    assert value_of(pairs) == 2 * value_of(rows.shape[0])


def test_what_is_known_stays_as_it_is() -> None:
    assert is_known(24)
    assert value_of(picked_rows(width=24).shape[1]) == 24


def test_a_size_may_be_divided_by_another_that_is_unknown() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty(4, 6)
        many, few = x[x > 0].shape[0], x[x > 1].shape[0]
    assert value_of(many // few) == value_of(many) // value_of(few)
