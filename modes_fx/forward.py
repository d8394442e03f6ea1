"""Put another forward on one module, and take it off again."""

from collections.abc import Callable
from typing import Any

from torch import nn


class ReplacedForward:
    """Another ``forward`` of one module, which keeps its class, until it is removed."""

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Put ``forward`` on the module."""
        self._module, self._own = module, module.__dict__.get("forward")
        module.forward = forward

    def remove(self) -> None:
        """Give the module its own back."""
        if self._own is None:
            del self._module.forward
        else:
            self._module.forward = self._own
