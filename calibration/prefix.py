"""Run a model from the middle: what comes before a layer is remembered, not computed again.

In a stack of decoder layers whatever is changed in layer l leaves the layers before it as they
were. Their outputs are recorded in one run; a later run puts out those of layer l - 1 in its place,
passes by the layers before that, and computes only from l on. So it is with towers that see images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from modes_fx.forward import ReplacedForward


@dataclass(frozen=True)
class Stack:
    """The decoder layers of a model, and what runs before them.

    Attributes:
        layers: in the order in which they run.
        place: of the decoder layer that each module with experts is in, by path.
        towers: modules beside the stack that have stacks of their own.
    """

    layers: Sequence[nn.Module]
    place: Mapping[str, int]
    towers: Sequence[nn.Module]


@dataclass
class Prefix:
    """What one call put out on its way.

    Attributes:
        layers: the output of each decoder layer, on the CPU.
        towers: the outputs of each tower, in the order of its calls.
    """

    layers: dict[int, Any] = field(default_factory=dict)
    towers: dict[int, list[Any]] = field(default_factory=dict)


def find_stack(model: nn.Module, paths: Sequence[str]) -> Stack | None:
    """Return the stack that all modules with experts are in; None where there is no single one.

    Args:
        model: the model.
        paths: of the modules that own experts.
    """
    lists = {path: list(_lists_around(model, path)) for path in paths}
    common = set.intersection(*({name for name, _ in around} for around in lists.values()))
    if not common:
        return None
    name = max(common, key=len)
    stack = model.get_submodule(name)
    assert isinstance(stack, nn.ModuleList)
    inside = {id(module) for module in stack.modules()}
    towers = [
        child
        for path, child in model.named_modules()
        if id(child) not in inside
        and not name.startswith(f"{path}.")
        and path
        and _is_sibling(path, name)
        and any(isinstance(part, nn.ModuleList) for part in child.modules())
    ]
    return Stack(list(stack), {path: dict(around)[name] for path, around in lists.items()}, towers)


@contextmanager
def recording(stack: Stack, prefix: Prefix) -> Iterator[None]:
    """Remember what the one call made inside the ``with`` block puts out on its way."""

    def record_layer(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            prefix.layers[number] = _copied(output, "cpu")
            return output

        return run

    def record_tower(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            prefix.towers.setdefault(number, []).append(_copied(output, "cpu"))
            return output

        return run

    with ExitStack() as undo:
        for number, layer in enumerate(stack.layers):
            _replace(undo, layer, record_layer(number, layer.forward))
        for number, tower in enumerate(stack.towers):
            _replace(undo, tower, record_tower(number, tower.forward))
        yield


@contextmanager
def resuming(stack: Stack, prefix: Prefix, place: int) -> Iterator[None]:
    """Let a call like the recorded one compute only the decoder layers from ``place`` on."""

    def pass_by(number: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return _copied(prefix.layers[number], hidden.device)

        return run

    def replay(number: int, device: torch.device) -> Callable[..., Any]:
        calls = iter(prefix.towers[number])

        def run(*args: Any, **kwargs: Any) -> Any:
            return _copied(next(calls), device)

        return run

    with ExitStack() as undo:
        for number, layer in enumerate(stack.layers[:place]):
            _replace(undo, layer, pass_by(number))
        for number, tower in enumerate(stack.towers):
            if number in prefix.towers:
                device = next(tower.parameters()).device
                _replace(undo, tower, replay(number, device))
        yield


def _lists_around(model: nn.Module, path: str) -> Iterator[tuple[str, int]]:
    """Yield the module lists around a module: their paths, and where in them it is."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        around = ".".join(parts[:depth])
        if isinstance(model.get_submodule(around), nn.ModuleList):
            yield around, int(parts[depth])


def _is_sibling(path: str, stack: str) -> bool:
    """Whether a module hangs on one of the modules around the stack."""
    return stack.startswith(path.rpartition(".")[0])


def _replace(undo: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    undo.callback(ReplacedForward(module, forward).remove)


def _copied(output: Any, device: torch.device | str) -> Any:
    """Copy an output: models write into what layers put out."""

    def copy(value: Any) -> Any:
        return value.to(device, copy=True) if isinstance(value, Tensor) else value

    return pytree.tree_map(copy, output)
