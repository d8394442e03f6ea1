"""Call a module with a routing of our own, to see what it does with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

from modes_fx.passes import graph as g
from modes_fx.passes.loops.body import Routing
from modes_fx.passes.loops.stacks import guess_num_experts, hidden_sizes
from modes_fx.passes.loops.trace import Trace, trace

Choice = Literal["index", "one_hot"]

CALLS: tuple[tuple[Choice, tuple[int, int, int]], ...] = (
    ("index", (0, 1, 2)),
    ("index", (0, 2, 1)),
    ("one_hot", (0, 1, 2)),
)
"""How the choice of experts may arrive, and the positions of x, the choice and the weights."""

TRACED_TOKENS = 6


def probes(module: nn.Module) -> Iterator["Probe"]:
    """Return the ways a module with experts may be called."""
    for hidden_size in hidden_sizes(module):
        for choice, order in CALLS:
            yield Probe(module, hidden_size, choice, order)


@dataclass(frozen=True)
class Probe:
    """Calls a module with a routing of our own, in one of the ways it may be called.

    Attributes:
        module: the module.
        hidden_size: H.
        choice: how the choice of experts arrives.
        order: the positions of x, the choice and the weights among its arguments.
    """

    module: nn.Module
    hidden_size: int
    choice: Choice
    order: tuple[int, int, int]

    def trace(self) -> tuple[Trace, Routing] | None:
        """Trace a call that hits two experts; None where the module cannot be called so."""
        routing = self.routing(TRACED_TOKENS, 2)
        args = self.arguments(routing, guess_num_experts(self.module))
        try:
            traced = trace(self.module, *args)
        except Exception:  # whatever a module that expects something else may raise
            return None
        out = traced.output
        gives_tokens = isinstance(out, Node) and prod(g.shape(out) or ()) == routing.x.numel()
        return (traced, routing) if gives_tokens else None

    def routing(self, tokens: int, num_experts: int, seed: int = 0) -> Routing:
        """Return a random routing that hits every expert where there are pairs enough."""
        generator = torch.Generator().manual_seed(seed)
        top_k = 1 if self.choice == "one_hot" else min(2, num_experts)
        x = torch.randn(tokens, self.hidden_size, generator=generator)
        index = (torch.arange(tokens * top_k) % num_experts).view(tokens, top_k)
        index = index[torch.randperm(tokens, generator=generator)]
        weight = torch.rand(tokens, top_k, generator=generator) + 0.1
        like = next(self.module.parameters())
        return Routing(x.to(like), index.to(like.device), weight.to(like))

    def arguments(self, routing: Routing, num_experts: int) -> list[Tensor]:
        """Return a routing as the module takes it."""
        choice = routing.topk_index
        if self.choice == "one_hot":
            choice = nn.functional.one_hot(choice, num_experts)
        given = (routing.x, choice, routing.topk_weight)
        return [given[self.order.index(position)] for position in range(3)]

    def run(self, routing: Routing, num_experts: int) -> Tensor:
        """Run the module."""
        with torch.no_grad():
            out: Tensor = self.module(*self.arguments(routing, num_experts))
        return out

    def ranks(self, num_experts: int) -> tuple[int, ...]:
        """Return for which numbers of dimensions of x the module returns the shape of x."""
        routing = self.routing(TRACED_TOKENS, num_experts)
        given = (routing, routing._replace(x=routing.x[None]))
        return tuple(r.x.dim() for r in given if self._keeps_shape(r, num_experts))

    def _keeps_shape(self, routing: Routing, num_experts: int) -> bool:
        try:
            return self.run(routing, num_experts).shape == routing.x.shape
        except (RuntimeError, IndexError):
            return False
