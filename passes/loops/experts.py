"""Recognise a module that is called with its routing and loops over its experts."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from modes_fx.passes.agreement import CROWD, check_agreement
from modes_fx.passes.loops.body import Routing, expert_gemms, lift_experts
from modes_fx.passes.loops.call import NO_EXPERT, ExpertsCall, Loop, Parts
from modes_fx.passes.loops.probe import Choice, Probe, probes
from modes_fx.passes.loops.stacks import expert_weights, may_hold_experts, stacked
from modes_fx.passes.loops.trace import Trace
from modes_fx.passes.region import NoMatchError

MIN_TOKENS = 8
"""The proof is run on as many tokens as there are experts, and on at least these."""


@dataclass(frozen=True)
class ExpertLoop(Loop):
    """A module that is called with its routing, as one op.

    Attributes:
        experts: what it computes.
        names: of the arguments (x, choice, weight) in the module's own order.
        order: the positions of x, choice and weight among them.
        choice: how the choice arrives.
        ranks: the numbers of dimensions of x for which the module returns the shape of x.
        max_error: the largest relative error found when it was verified.
    """

    experts: ExpertsCall
    names: tuple[str, ...]
    order: tuple[int, int, int]
    choice: Choice
    ranks: tuple[int, ...]
    max_error: float

    def accepts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether x has a number of dimensions that was proved."""
        return self._routing(args, kwargs)[0].dim() in self.ranks

    def route(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Parts:
        """Read the routing from the arguments."""
        x, choice, weight = self._routing(args, kwargs)
        return Parts(x.reshape(-1, x.shape[-1]), self._index(choice), weight, x.shape)

    def join(self, parts: Parts, total: Tensor) -> Tensor:
        """Return the sum in the shape of x."""
        return total.view(parts.shape)

    def _index(self, choice: Tensor) -> Tensor:
        """Return ``[T, K]`` expert ids; ``NO_EXPERT`` where nothing is chosen."""
        if self.choice == "index":
            return choice
        chosen = choice != 0
        return torch.where(chosen.any(-1), chosen.int().argmax(-1), NO_EXPERT)

    def _routing(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        given = [*args, *(kwargs[name] for name in self.names[len(args) :])]
        return [given[position] for position in self.order]


def find_expert_loop(module: nn.Module) -> ExpertLoop | None:
    """Recognise the loop of a module that is called as ``(x, choice of experts, weight)``.

    Args:
        module: in evaluation mode, with real weights.

    Returns:
        The loop as one op; None where the module is no such thing.

    Raises:
        NoMatchError: it loops over experts, but not in a way that could be proved right.
    """
    names = _three_arguments(module)
    if names is None or not may_hold_experts(module):
        return None
    failure = None
    for probe in probes(module):
        traced = probe.trace()
        if traced is None:
            continue
        try:
            loop = _recognise(probe, *traced, names)
        except NoMatchError as error:
            failure = failure or error
        else:
            if loop is not None or failure is None:
                return loop
    if failure is not None:
        raise failure
    return None


def _recognise(
    probe: Probe, traced: Trace, routing: Routing, names: tuple[str, ...]
) -> ExpertLoop | None:
    weights = expert_weights(traced, probe.module)
    gemms = expert_gemms(traced, weights)
    if not gemms:
        return None
    experts = ExpertsCall.of(lift_experts(gemms, weights, routing))
    choices = experts.num_experts + experts.num_identity
    return ExpertLoop(
        experts=experts,
        names=names,
        order=probe.order,
        choice=probe.choice,
        ranks=probe.ranks(choices),
        max_error=_verify(experts, probe, choices),
    )


def _verify(experts: ExpertsCall, probe: Probe, choices: int) -> float:
    """Compare a loop with the op.

    On tokens that hit every expert, on half of their pairs, and on tokens that all go to the same
    experts, so that a limit to how many tokens an expert takes shows.
    """
    params = [stacked(stack, probe.module) for stack in experts.stacks]
    spread = probe.routing(max(MIN_TOKENS, choices), choices, seed=1)
    crowd = probe.routing(CROWD, choices, seed=2)
    crowd = crowd._replace(topk_index=crowd.topk_index[:1].expand_as(crowd.topk_index))
    return max(
        _compare(experts, probe, routing, share_skipped, params)
        for routing, share_skipped in ((spread, 0.0), (spread, 0.5), (crowd, 0.0))
    )


@torch.no_grad()
def _compare(
    experts: ExpertsCall,
    probe: Probe,
    routing: Routing,
    share_skipped: float,
    params: Sequence[Tensor],
) -> float:
    choices = experts.num_experts + experts.num_identity
    generator = torch.Generator().manual_seed(3)
    skip = torch.rand(routing.topk_weight.shape, generator=generator) < share_skipped
    skip = skip.to(routing.x.device)
    unweighted = routing._replace(topk_weight=routing.topk_weight.masked_fill(skip, 0))
    kept = unweighted._replace(topk_index=routing.topk_index.masked_fill(skip, NO_EXPERT))
    return check_agreement(
        probe.run(unweighted, choices).view_as(routing.x),
        experts.run(*kept, params),
        lambda: experts.exact(*kept, params),
        f"{int(skip.sum())} of {skip.numel()} pairs skipped",
    )


def _three_arguments(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a module's arguments where they may be x, a choice and weights."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) != 3 or any(p.kind not in positional for p in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)
