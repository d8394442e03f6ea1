"""Keep the experts of a module as panels instead of as the model's own parameters.

The panels hold each weight in the order in which the CPU kernel reads it. The module's ``forward``
gives way to the op that reads them, and its parameters keep their names, shapes and dtypes but no
data, so that whatever still wanted to read them fails instead of reading panels.
"""

import gc
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from modes_fx.forward import ReplacedForward
from modes_fx.kernels.cpu.plan import UnfusableError, plan
from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.panels import PANEL, can_pack, matrices, pack, packed_body, unpack
from modes_fx.loops import loop_forward
from modes_fx.passes.loops.call import Loop
from modes_fx.passes.loops.experts import ExpertLoop, find_expert_loop
from modes_fx.passes.loops.stacks import SeparateStack, Stack, stacked
from modes_fx.passes.region import NoMatchError


def find_own_loop(module: nn.Module) -> ExpertLoop | None:
    """Recognise the experts of a module whose ``forward`` is wrapped to run them in other ways.

    Args:
        module: a module that is called as ``(x, choice of experts, weight)``.

    Returns:
        What the code inside the wrapper computes, proved on it; None where nothing is wrapped, or
        that code is no loop over experts.

    Raises:
        NoMatchError: it is, but in a way that could not be proved right.
    """
    forward = type(module).forward
    own: Any = inspect.unwrap(forward)
    if own is forward:
        return None
    replaced = ReplacedForward(module, MethodType(own, module))
    try:
        return find_expert_loop(module)
    finally:
        replaced.remove()


def find_packable(
    layers: Mapping[str, nn.Module], loops: Mapping[str, Loop]
) -> tuple[dict[str, Loop], dict[str, str]]:
    """Find the layers whose experts can be packed.

    Args:
        layers: the modules that own experts, by path.
        loops: those of them that are recognised as loops already.

    Returns:
        What the experts of a layer compute, and why others cannot be packed, both by path.
    """
    packable: dict[str, Loop] = {}
    left: dict[str, str] = {}
    for path, layer in layers.items():
        try:
            loop = loops.get(path) or find_own_loop(layer)
            if loop is None:
                raise NoMatchError("its code is no loop over experts that could be recognised")
            _check_packable(layer, loop)
            packable[path] = loop
        except (NoMatchError, UnfusableError) as error:
            left[path] = str(error)
    # Graphs of what was tried hold weights, and themselves, until they are collected.
    gc.collect()
    return packable, left


def warn_unpacked(left: Mapping[str, str]) -> None:
    """Say which layers keep the model's own layout."""
    if left:
        path, reason = next(iter(left.items()))
        warnings.warn(
            f"prepack: {len(left)} layers keep their weights as they are; the first is {path}: "
            f"{reason}. They run on the model's own layout, at somewhat less speed",
            stacklevel=3,
        )


class PackedLoop:
    """A module's experts as panels until they are removed.

    Attributes:
        max_error: the largest relative error found when the experts were verified.
    """

    def __init__(self, module: nn.Module, loop: Loop) -> None:
        """Pack one weight after another, and free the original of each before the next."""
        self._module, self.max_error = module, loop.max_error
        self._originals: dict[str, nn.Parameter] = {}
        body = Body.from_json(loop.experts.body)
        self._stacks, self._transposed = loop.experts.stacks, matrices(body)
        self._params = [self._pack(position, stack) for position, stack in enumerate(self._stacks)]
        experts = replace(loop.experts, body=packed_body(body).to_json())
        packed: Any = replace(loop, experts=experts)  # type: ignore[type-var]  # every Loop is a dataclass
        forward = loop_forward(module, packed, self._params, self._refuse)
        self._forward = ReplacedForward(module, forward)

    def check(self) -> None:
        """Check that the parameters still are what was packed.

        Raises:
            RuntimeError: the model was loaded into, moved or converted since.
        """
        for position in self._transposed:
            for name in _names(self._stacks[position]):
                parameter = self._module.get_parameter(name)
                if not parameter.is_meta or parameter.dtype != self._params[position].dtype:
                    raise RuntimeError(
                        f"{name} of {type(self._module).__name__} was changed while its weights "
                        "are packed: detach, change the model, then attach again"
                    )

    def remove(self) -> None:
        """Give the module its own ``forward`` and weights again."""
        self._forward.remove()
        for position, transposed in self._transposed.items():
            weight = unpack(self._params[position])
            self._params[position] = weight[:0]
            weight = weight if transposed else weight.transpose(1, 2).contiguous()
            names = _names(self._stacks[position])
            parts = weight if len(names) > 1 else [weight]
            for name, part in zip(names, parts, strict=True):
                original = self._originals.pop(name)
                original.data = part.clone() if len(names) > 1 else part.view(self._shape(name))
                _put(self._module, name, original)

    def _pack(self, position: int, stack: Stack) -> Tensor:
        whole = stacked(stack, self._module).detach()
        if position not in self._transposed:
            return whole
        packed = pack(whole, transposed=self._transposed[position])
        del whole
        for name in _names(stack):
            original = self._originals[name] = self._module.get_parameter(name)
            _put(self._module, name, nn.Parameter(original.to("meta"), original.requires_grad))
            original.data = original.data.new_empty(0)
        return packed

    def _shape(self, name: str) -> torch.Size:
        return self._module.get_parameter(name).shape

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"{type(self._module).__name__} was called in a way that was not proved when the model "
            "was attached, and its own code cannot run while its weights are packed: attach "
            "without prepack=True"
        )


def _check_packable(layer: nn.Module, loop: Loop) -> None:
    body = Body.from_json(loop.experts.body)
    parts = plan(body)
    starts = [stream.view.start for stream in parts.streams if parts.layout == "apart"]
    if any(start % PANEL for start in starts):
        raise NoMatchError(f"its intermediate size is no multiple of {PANEL}")
    for position, transposed in matrices(body).items():
        weight = _first(loop.experts.stacks[position], layer)
        if weight.device.type != "cpu":
            raise NoMatchError(f"its weights are on {weight.device}, and panels are for CPUs")
        if not can_pack(weight, transposed=transposed):
            raise NoMatchError(
                f"weights {tuple(weight.shape)} in {weight.dtype} do not divide into panels of "
                f"{PANEL} columns"
            )


def _first(stack: Stack, layer: nn.Module) -> Tensor:
    if isinstance(stack, SeparateStack):
        return layer.get_parameter(stack.names[0]).detach()[None]
    return layer.get_parameter(stack.name).detach().view(stack.shape)


def _names(stack: Stack) -> tuple[str, ...]:
    return stack.names if isinstance(stack, SeparateStack) else (stack.name,)


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Make a tensor the parameter of that name."""
    path, _, own = name.rpartition(".")
    module.get_submodule(path).register_parameter(own, parameter)
