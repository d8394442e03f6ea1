"""The experts of a loop as one call of ``modes_fx::experts``, and what a recognised loop can do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modes_fx import ops as ops  # registers the op
from modes_fx.kernels import reference
from modes_fx.kernels.epilogue import Body
from modes_fx.passes.loops.body import LiftedExperts
from modes_fx.passes.loops.stacks import Stack

NO_EXPERT = torch.iinfo(torch.int32).max
"""The id of a pair that is not computed: above those of all experts, also of identity ones."""


@dataclass(frozen=True)
class ExpertsCall:
    """What the experts of a loop compute.

    Attributes:
        body: of one expert, as JSON.
        stacks: the body's parameters.
        num_experts: E.
        num_identity: experts with ids from E on that return their input.
    """

    body: str
    stacks: tuple[Stack, ...]
    num_experts: int
    num_identity: int

    @staticmethod
    def of(lifted: LiftedExperts) -> "ExpertsCall":
        """Return the call of lifted experts; where some lack weights, they return their input."""
        sizes = [stack.num_experts for stack in lifted.stacks]
        body = lifted.body.to_json()
        return ExpertsCall(body, lifted.stacks, min(sizes), max(sizes) - min(sizes))

    def run(self, x: Tensor, index: Tensor, weight: Tensor, params: Sequence[Tensor]) -> Tensor:
        """Compute the experts; a pair is skipped where its id is ``NO_EXPERT`` and its weight 0.

        Args:
            x: ``[T, H]``.
            index: ``[T, K]`` integer.
            weight: ``[T, K]`` combine weights.
            params: the body's parameters.
        """
        out = torch.ops.modes_fx.experts(x, index, weight, params, self.body, self.num_experts)
        return out + self._identity(x, index, weight) if self.num_identity else out

    def exact(self, x: Tensor, index: Tensor, weight: Tensor, params: Sequence[Tensor]) -> Tensor:
        """Compute the same in float32, slowly."""
        body, x = Body.from_json(self.body), x.float()
        out = reference.experts(x, index, weight, params, body, self.num_experts)
        return out + self._identity(x, index, weight) if self.num_identity else out

    def _identity(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return x * (weight * (index >= self.num_experts)).sum(-1, keepdim=True).to(x.dtype)


class Parts(NamedTuple):
    """What a module computes besides its experts, in one call.

    Attributes:
        x: ``[T, H]`` the experts' input.
        topk_index: ``[T, K]`` integer.
        topk_weight: ``[T, K]`` combine weights.
        shape: of the hidden states that the module was given.
        rest: what is added to the experts' sum, if anything.
        others: the module's other outputs.
    """

    x: Tensor
    topk_index: Tensor
    topk_weight: Tensor
    shape: torch.Size
    rest: Tensor | None = None
    others: Sequence[Any] = ()


class Loop(ABC):
    """A module's loop over its experts, taken apart: ``join(parts, sum of the experts)``.

    Attributes:
        experts: what its experts compute.
        max_error: the largest relative error found when it was verified.
    """

    experts: ExpertsCall
    max_error: float

    @abstractmethod
    def accepts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a call of the module is of the kind that was proved."""

    @abstractmethod
    def route(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Parts:
        """Compute all but the experts, for a call of the module."""

    @abstractmethod
    def join(self, parts: Parts, total: Tensor) -> Any:
        """Return what the module returns, from the sum ``[T, H]`` of its experts."""
