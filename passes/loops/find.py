"""Find the expert loops of a whole model."""

from collections.abc import Hashable
from typing import NamedTuple

from torch import nn

from modes_fx.passes.loops.experts import ExpertLoop, find_expert_loop
from modes_fx.passes.region import NoMatchError


class FoundLoops(NamedTuple):
    """The modules of a model that loop over experts.

    Attributes:
        loops: those that can run as one op, by path.
        left: why the others cannot, by path.
    """

    loops: dict[str, ExpertLoop]
    left: dict[str, str]


def find_loops(model: nn.Module) -> FoundLoops:
    """Recognise every expert loop of a model by running the modules that could be one.

    Args:
        model: in evaluation mode; where its weights are not real, nothing is found.
    """
    found = FoundLoops({}, {})
    without_loop: set[Hashable] = set()
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in (*found.loops, *found.left))
        kind = _kind(module)
        if inside or kind in without_loop:
            continue
        try:
            loop = find_expert_loop(module)
        except NoMatchError as failure:
            found.left[path] = str(failure)
            continue
        if loop is None:
            without_loop.add(kind)
        else:
            found.loops[path] = loop
    return found


def _kind(module: nn.Module) -> Hashable:
    """Return what modules of the same code and shapes have in common."""
    shapes = tuple((name, p.shape, p.device) for name, p in module.named_parameters())
    return type(module), shapes
