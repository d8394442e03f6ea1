"""Recognise a block that routes tokens itself and loops over its experts.

Such a block is called with hidden states alone. Runs of two sizes show which of its values are the
routing and what it computes besides; from that comes a graph for all sizes that ends in one call of
``modes_fx::experts``.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from modes_fx.passes import graph as g
from modes_fx.passes.agreement import CROWD, check_agreement
from modes_fx.passes.loops.body import LiftedExperts, expert_gemms, lift_experts
from modes_fx.passes.loops.call import NO_EXPERT, ExpertsCall, Loop, Parts
from modes_fx.passes.loops.rest import rest_of
from modes_fx.passes.loops.routing import routings
from modes_fx.passes.loops.sizes import Cut, for_all_sizes
from modes_fx.passes.loops.stacks import (
    expert_weights,
    has_router,
    hidden_sizes,
    stacked,
)
from modes_fx.passes.loops.trace import Trace, trace
from modes_fx.passes.region import NoMatchError

SIZES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (((2, 5), (3, 7)), ((10,), (21,)))
"""Leading dimensions of the hidden states in the two runs: as a batch, else as a list of tokens."""

TOKENS_PER_EXPERT = 8
"""How many tokens for each expert the proof is run on, so that about all are hit."""


@dataclass(frozen=True)
class BlockLoop(Loop):
    """A block that routes tokens itself, as a graph and one op.

    Attributes:
        experts: what its experts compute.
        graph: ``(x, *weights) -> [x, index, weight, rest, *others]``: the experts' input and
            routing, what the block adds to their sum, and its other outputs.
        weights: the names of the graph's weights in the block.
        position: of the experts' sum among the block's outputs; None where it is the only output.
        rank: the number of dimensions of the hidden states.
        max_error: the largest relative error found when it was verified.
    """

    experts: ExpertsCall
    graph: GraphModule
    weights: tuple[str, ...]
    position: int | None
    rank: int
    max_error: float = 0.0

    def accepts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a call gives hidden states of the proved rank and nothing else."""
        given = _given(args, kwargs)
        return len(given) == 1 and isinstance(given[0], Tensor) and given[0].dim() == self.rank

    def route(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Parts:
        """Run the graph."""
        (hidden,) = _given(args, kwargs)
        weights = [_named(module, name) for name in self.weights]
        x, index, weight, rest, *others = self.graph(hidden, *weights)
        x = x.reshape(-1, x.shape[-1])
        tokens = x.shape[0]
        routing = (index.reshape(tokens, -1), weight.reshape(tokens, -1))
        return Parts(x, *routing, hidden.shape, rest, others)

    def join(self, parts: Parts, total: Tensor) -> Any:
        """Add the rest to the sum, and put the result among the other outputs."""
        total = total.view(parts.shape)
        if parts.rest is not None:
            total = total + parts.rest.view(parts.shape)
        if self.position is None:
            return total
        return (*parts.others[: self.position], total, *parts.others[self.position :])


def find_block_loop(module: nn.Module) -> BlockLoop | None:
    """Recognise the loop of a block that is called with hidden states alone.

    Args:
        module: in evaluation mode, with real weights.

    Returns:
        The block as a graph and one op; None where it is no such thing.

    Raises:
        NoMatchError: it routes tokens to experts, but not in a way that could be proved right.
    """
    if not (has_router(module) and _takes_one_argument(module)):
        return None
    for hidden_size in hidden_sizes(module):
        for sizes in SIZES:
            shapes = [(*size, hidden_size) for size in sizes]
            try:
                traces = [trace(module, _random(module, *shape)) for shape in shapes]
            except Exception:  # whatever a module that expects something else may raise
                continue
            loop = _recognise(module, traces)
            if loop is not None:
                return loop
    return None


class _Understood(NamedTuple):
    experts: ExpertsCall
    cut: Cut
    position: int | None


def _recognise(module: nn.Module, traces: Sequence[Trace]) -> BlockLoop | None:
    understood = [_understand(module, traced) for traced in traces]
    if None in understood:
        return None
    (experts, first, position), (other, second, _) = understood  # type: ignore[misc]
    if experts != other:
        raise NoMatchError("what its experts compute depends on the data")
    graph, weights = for_all_sizes(first, second, _names(module))
    *leading, hidden_size = traces[0].inputs[0].meta["val"].shape
    loop = BlockLoop(experts, graph, tuple(weights), position, len(leading) + 1)
    try:
        return replace(loop, max_error=_verify(loop, module, hidden_size))
    except (RuntimeError, IndexError) as error:
        raise NoMatchError(f"the proof could not be run: {error}") from error


def _understand(module: nn.Module, traced: Trace) -> _Understood | None:
    """Find the routing of a run, with which the block is the experts' sum and a rest."""
    weights = expert_weights(traced, module)
    gemms = expert_gemms(traced, weights)
    failure = None
    for nodes, routing in routings(traced, gemms, weights) if gemms else ():
        try:
            lifted = lift_experts(gemms, weights, routing)
            understood = _separate(traced, nodes, lifted)
            _check(understood, module, traced)
        except NoMatchError as error:
            failure = failure or error
        else:
            return understood
    if failure is not None:
        raise failure
    return None


def _separate(traced: Trace, routing: Sequence[Node], lifted: LiftedExperts) -> _Understood:
    """Separate the output that the experts add to from the others, and from the rest of it."""
    copy, nodes = traced.copy()
    ends = [nodes[end] for end in lifted.ends]
    single = isinstance(copy.output, Node)
    outputs = [copy.output] if single else list(copy.output)
    behind = g.descendants(ends)
    positions = [i for i, output in enumerate(outputs) if output in behind]
    if len(positions) != 1:
        raise NoMatchError(f"its experts reach {len(positions)} of its outputs, not one")
    (position,) = positions
    rest = rest_of(outputs.pop(position), ends)
    results = [*(nodes[node] for node in routing), rest, *outputs]
    return _Understood(ExpertsCall.of(lifted), Cut(copy, results), None if single else position)


def _check(understood: _Understood, module: nn.Module, traced: Trace) -> None:
    """Check on the run itself that the routing found gives its output."""
    experts, cut, position = understood
    graph, weights = for_all_sizes(cut, cut, _names(module))
    hidden = traced.inputs[0].meta["val"]
    _compare(BlockLoop(experts, graph, tuple(weights), position, hidden.dim()), module, hidden)


def _verify(loop: BlockLoop, module: nn.Module, hidden_size: int) -> float:
    """Compare a block with its rewrite in sizes that were not traced.

    With all experts, without half of them, and with all tokens alike, so that all go to the same
    experts and a limit to how many tokens an expert takes shows.
    """
    num_experts = loop.experts.num_experts
    one = (1,) * (loop.rank - 1)
    many = (*one[1:], TOKENS_PER_EXPERT * num_experts)
    token = _random(module, *one, hidden_size)
    tokens = _random(module, *many, hidden_size)
    half = torch.arange(num_experts) % 2 == 1
    return max(
        _compare(loop, module, token),
        _compare(loop, module, tokens),
        _compare(loop, module, tokens, half),
        _compare(loop, module, token.expand(*one[1:], CROWD, hidden_size)),
    )


@torch.no_grad()
def _compare(
    loop: BlockLoop, module: nn.Module, hidden: Tensor, removed: Tensor | None = None
) -> float:
    """Compare a block with its rewrite; ``removed`` ``[E]`` tells which experts to leave out."""
    experts = loop.experts
    params = [stacked(stack, module) for stack in experts.stacks]
    parts = loop.route(module, (hidden.clone(),), {})
    if removed is not None:
        skip = removed.to(hidden.device)[parts.topk_index]
        parts = parts._replace(
            topk_index=parts.topk_index.masked_fill(skip, NO_EXPERT),
            topk_weight=parts.topk_weight.masked_fill(skip, 0),
        )
    routing = (parts.x, parts.topk_index, parts.topk_weight)
    rewritten = loop.join(parts, experts.run(*routing, params))
    with _without(experts, module, removed):
        original = module(hidden.clone())
    exact = cache(lambda: loop.join(parts, experts.exact(*routing, params)))
    single = loop.position is None
    wanted, given = ([original], [rewritten]) if single else (original, rewritten)
    if len(wanted) != len(given):
        raise NoMatchError(f"its rewrite gives {len(given)} outputs, not {len(wanted)}")
    return max(
        check_agreement(
            one,
            other,
            lambda output=output: exact() if single else exact()[output],  # type: ignore[misc]
            f"{0 if removed is None else int(removed.sum())} experts left out",
        )
        for output, (one, other) in enumerate(zip(wanted, given, strict=True))
    )


@contextmanager
def _without(experts: ExpertsCall, module: nn.Module, removed: Tensor | None) -> Iterator[None]:
    """Within the context, the weights of some experts are 0, so that they give 0."""
    gone = [] if removed is None else torch.where(removed)[0].tolist()
    parts = [stack.part(module, e) for stack in experts.stacks for e in gone]
    kept = [part.clone() for part in parts]
    try:
        for part in parts:
            part.zero_()
        yield
    finally:
        for part, value in zip(parts, kept, strict=True):
            part.copy_(value)


def _takes_one_argument(module: nn.Module) -> bool:
    parameters = list(inspect.signature(module.forward).parameters.values())
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return len(required) == 1


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return [value for value in (*args, *kwargs.values()) if value is not None]


def _random(module: nn.Module, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(next(module.parameters()))


def _names(module: nn.Module) -> dict[int, str]:
    return {id(t): name for name, t in (*module.named_buffers(), *module.named_parameters())}


def _named(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), last)
    return tensor
