"""Recognise a module that is called with its routing and loops over its experts."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import Parameter

import torch
from torch import Tensor, nn

from modes_fx.kernels import reference
from modes_fx.kernels.epilogue import Body
from modes_fx.passes.agreement import check_agreement
from modes_fx.passes.loops.body import Routing, expert_gemms, lift_experts
from modes_fx.passes.loops.probe import Choice, Probe, probes
from modes_fx.passes.loops.stacks import Stack, expert_weights, may_hold_experts, stacked
from modes_fx.passes.loops.trace import Trace
from modes_fx.passes.region import NoMatchError

NO_EXPERT = torch.iinfo(torch.int32).max
"""The id of a pair that is not computed: above those of all experts, also of identity ones."""


MIN_TOKENS = 8
"""The proof is run on as many tokens as there are experts, and on at least these."""


@dataclass(frozen=True)
class ExpertLoop:
    """A module's loop over its experts, as one call of ``modes_fx::experts``.

    Attributes:
        names: of the arguments (x, choice, weight) in the module's own order.
        order: the positions of x, choice and weight among them.
        choice: ``index`` [T, K] integer, or ``one_hot`` [T, K, E] of which a row may be all zero.
        body: what an expert computes, as JSON.
        stacks: the body's parameters.
        num_experts: E.
        num_identity: experts with ids from E on that return their input.
        ranks: the numbers of dimensions of x for which the module returns the shape of x.
        max_error: the largest relative error found when it was verified.
    """

    names: tuple[str, ...]
    order: tuple[int, int, int]
    choice: Choice
    body: str
    stacks: tuple[Stack, ...]
    num_experts: int
    num_identity: int
    ranks: tuple[int, ...]
    max_error: float

    def index(self, choice: Tensor) -> Tensor:
        """Return ``[T, K]`` expert ids; ``NO_EXPERT`` where nothing is chosen."""
        if self.choice == "index":
            return choice
        chosen = choice != 0
        return torch.where(chosen.any(-1), chosen.int().argmax(-1), NO_EXPERT)

    def identity(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Return what the experts that return their input add, ``[T, H]``."""
        return x * (weight * (index >= self.num_experts)).sum(-1, keepdim=True).to(x.dtype)

    def run(self, x: Tensor, index: Tensor, weight: Tensor, params: Sequence[Tensor]) -> Tensor:
        """Compute the experts; a pair is skipped where its id is ``NO_EXPERT`` and its weight 0.

        Args:
            x: ``[..., H]``, of T tokens in all.
            index: ``[T, K]`` integer.
            weight: ``[T, K]`` combine weights.
            params: the body's parameters.
        """
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.modes_fx.experts(rows, index, weight, params, self.body, self.num_experts)
        if self.num_identity:
            out = out + self.identity(rows, index, weight)
        return out.view(x.shape)


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
        try:
            loop = _recognise(probe, *traced, names) if traced is not None else None
        except NoMatchError as error:
            failure = failure or error
        else:
            if loop is not None:
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
    lifted = lift_experts(gemms, weights, routing)
    num_experts = min(stack.num_experts for stack in lifted.stacks)
    loop = ExpertLoop(
        names=names,
        order=probe.order,
        choice=probe.choice,
        body=lifted.body.to_json(),
        stacks=lifted.stacks,
        num_experts=num_experts,
        num_identity=max(stack.num_experts for stack in lifted.stacks) - num_experts,
        ranks=probe.ranks(num_experts),
        max_error=0.0,
    )
    return replace(loop, max_error=_verify(loop, probe))


def _verify(loop: ExpertLoop, probe: Probe) -> float:
    """Compare a loop with the op on tokens that hit every expert, all kept and half of them."""
    choices = loop.num_experts + loop.num_identity
    routing = probe.routing(max(MIN_TOKENS, choices), choices, seed=1)
    generator = torch.Generator().manual_seed(2)
    half = (torch.rand(routing.topk_weight.shape, generator=generator) < 0.5).to(routing.x.device)
    params = [stacked(stack, probe.module) for stack in loop.stacks]
    largest = 0.0
    with torch.no_grad():
        for skip in (torch.zeros_like(half), half):
            without = routing._replace(topk_weight=routing.topk_weight.masked_fill(skip, 0))
            original = probe.run(without, choices).view_as(routing.x)
            kept = routing._replace(
                topk_index=routing.topk_index.masked_fill(skip, NO_EXPERT),
                topk_weight=routing.topk_weight.masked_fill(skip, 0),
            )
            error = check_agreement(
                original,
                loop.run(*kept, params),
                lambda kept=kept: _exact(loop, kept, params),  # type: ignore[misc]
                f"{int(skip.sum())} of {skip.numel()} pairs skipped",
            )
            largest = max(largest, error)
    return largest


def _exact(loop: ExpertLoop, routing: Routing, params: Sequence[Tensor]) -> Tensor:
    x, index, weight = routing
    body = Body.from_json(loop.body)
    out = reference.experts(x.float(), index, weight, params, body, loop.num_experts)
    return out + loop.identity(x.float(), index, weight) if loop.num_identity else out


def _three_arguments(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a module's arguments where they may be x, a choice and weights."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) != 3 or any(p.kind not in positional for p in parameters):
        return None
    return tuple(parameter.name for parameter in parameters)
