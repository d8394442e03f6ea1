"""Find the expert loops of a whole model."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from modes_fx.passes.loops.block import find_block_loop
from modes_fx.passes.loops.call import Loop
from modes_fx.passes.loops.experts import find_expert_loop
from modes_fx.passes.region import NoMatchError


class FoundLoops(NamedTuple):
    """The modules of a model that loop over experts.

    Attributes:
        loops: those that can run as one op, by path.
        left: why the others cannot, by path.
    """

    loops: dict[str, Loop]
    left: dict[str, str]


def find_loops(model: nn.Module) -> FoundLoops:
    """Recognise every expert loop of a model by running the modules that could be one.

    Of modules inside each other the innermost counts. One that owns stacked experts and does not
    loop over them is left to the patterns of captured graphs, with all that contains it.

    Args:
        model: in evaluation mode; where its weights are not real, nothing is found.
    """
    found = FoundLoops({}, {})
    without_loop: set[Hashable] = set()
    settled: list[str] = []
    for path, module in reversed(list(model.named_modules())):
        if any(_inside(inner, path) for inner in settled):
            continue
        kind = _kind(module)
        try:
            loop = None if kind in without_loop else _find_loop(module)
        except NoMatchError as failure:
            found.left[path] = str(failure)
            continue
        if loop is not None:
            found.loops[path] = loop
        else:
            without_loop.add(kind)
        if loop is not None or owns_stack(module):
            settled.append(path)
    inner = [*found.left, *found.loops]
    return found._replace(
        left={
            path: reason
            for path, reason in found.left.items()
            if not any(_inside(path, loop) for loop in found.loops)
            and not any(_inside(other, path) for other in inner)
        }
    )


def owns_stack(module: nn.Module) -> bool:
    """Return whether a module owns two or more stacks of E experts.

    They are parameters of its own of shape ``[E, ., .]``, also ones that are computed from others
    (``torch.nn.utils.parametrize``, as where they are quantised), or tables ``[E, H]`` of one row
    an expert beside a layer that reads H, such as a router: without one they only embed something.
    """
    sizes = [p.shape for p in module.parameters(recurse=False)] + _parametrised_sizes(module)
    stacked = [size[:1] for size in sizes if len(size) == 3]
    tables = [m.weight.shape for m in module.children() if isinstance(m, nn.Embedding)]
    reads = {m.in_features for m in module.children() if isinstance(m, nn.Linear)}
    return _are_alike(stacked) or (_are_alike(tables) and tables[0][1] in reads)


def _parametrised_sizes(module: nn.Module) -> list[torch.Size]:
    if not is_parametrized(module):
        return []
    with torch.no_grad():
        return [getattr(module, name).shape for name in module.parametrizations]  # type: ignore[union-attr]


def _are_alike(sizes: Sequence[tuple[int, ...]]) -> bool:
    return len(sizes) >= 2 and len(set(sizes)) == 1 and sizes[0][0] > 1


def _find_loop(module: nn.Module) -> Loop | None:
    return find_expert_loop(module) or find_block_loop(module)


def _inside(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}."))


def _kind(module: nn.Module) -> Hashable:
    """Return what modules of the same code and shapes have in common."""
    shapes = tuple((name, p.shape, p.device) for name, p in module.named_parameters())
    return type(module), shapes
