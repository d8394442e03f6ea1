"""Put an expert loop into a form that can be captured, and take it out again.

The module keeps its class, its parameters and their values; its ``forward`` gives way to one call
of ``modes_fx::experts``. Experts that own their weights each by itself share one stacked tensor
from then on, of which their parameters are views: memory holds the weights once.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from modes_fx.forward import ReplacedForward
from modes_fx.hooks import mark
from modes_fx.passes.loops.call import Loop
from modes_fx.passes.loops.stacks import SeparateStack, Stack, stacked


class ReplacedLoop:
    """A loop that runs as one op until it is removed.

    Attributes:
        module: the module that owns the experts.
        loop: what it computes.
        max_error: the largest relative error found when it was verified.
    """

    def __init__(self, module: nn.Module, loop: Loop) -> None:
        """Replace the module's ``forward``."""
        self.module, self.loop, self.max_error = module, loop, loop.max_error
        self._params = [_share_storage(stack, module) for stack in loop.experts.stacks]
        forward = loop_forward(module, loop, self._params, _warned(module))
        self._forward = ReplacedForward(module, forward)

    def check(self) -> None:
        """Check that the experts still are what was stacked.

        Raises:
            RuntimeError: the model was moved or converted since.
        """
        for stack, param in zip(self.loop.experts.stacks, self._params, strict=True):
            if param is not None and not _shares_storage(stack, self.module, param):
                raise RuntimeError(
                    f"the experts of {type(self.module).__name__} were moved or converted after "
                    "the model was attached: detach, move or convert the model, then attach again"
                )

    def remove(self) -> None:
        """Give the module its own ``forward`` and its experts their own storage again."""
        self._forward.remove()
        for stack in self.loop.experts.stacks:
            if isinstance(stack, SeparateStack):
                for name in stack.names:
                    parameter = self.module.get_parameter(name)
                    parameter.data = parameter.data.clone()


def loop_forward(
    module: nn.Module,
    loop: Loop,
    params: Sequence[Tensor | None],
    otherwise: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a ``forward`` that computes a module's experts as one op.

    Args:
        module: the attached module.
        loop: what it computes.
        params: the body's parameters; None where one is read from the module at each call.
        otherwise: what takes a call of a kind that was not proved.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not loop.accepts(args, kwargs):
            return otherwise(*args, **kwargs)
        stacks = [
            stacked(stack, module) if param is None else param
            for stack, param in zip(loop.experts.stacks, params, strict=True)
        ]
        parts = loop.route(module, args, kwargs)
        routing = (parts.x, parts.topk_index, mark(module, parts.topk_weight))
        return loop.join(parts, loop.experts.run(*routing, stacks))

    return forward


def _warned(module: nn.Module) -> Callable[..., Any]:
    """Return a module's own ``forward``, with a warning that it is what runs."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{type(module).__name__} was called in a way that was not proved when the model "
            "was attached, so its own loop runs and computes every expert",
            stacklevel=2,
        )
        return original(*args, **kwargs)

    return forward


def _share_storage(stack: Stack, module: nn.Module) -> Tensor | None:
    """Stack parameters that are apart and make them views of the stack; None for a single one."""
    if not isinstance(stack, SeparateStack):
        return None
    whole = stacked(stack, module)
    for name, part in zip(stack.names, whole, strict=True):
        module.get_parameter(name).data = part
    return whole


def _shares_storage(stack: Stack, module: nn.Module, whole: Tensor) -> bool:
    assert isinstance(stack, SeparateStack)
    first = module.get_parameter(stack.names[0])
    return first.data_ptr() == whole.data_ptr() and first.dtype == whole.dtype
