"""Measure a layer: every implementation, at every number of tokens and every skip ratio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from modes_fx.bench.environment import describe_environment, last_level_cache
from modes_fx.bench.layer.calls import CACHES, copies_needed
from modes_fx.bench.layer.ceilings import bandwidth_ceiling, gemm_ceiling
from modes_fx.bench.layer.implementations import (
    DEFAULT_BASELINES,
    OURS,
    Implementation,
    find_implementations,
)
from modes_fx.bench.layer.oracle import TOLERANCE
from modes_fx.bench.layer.report import LayerBench
from modes_fx.bench.layer.size import Prepared, Size, clock_for
from modes_fx.bench.layer.weights import Layer, Layout, NotAvailableError
from modes_fx.bench.shapes import LayerShape
from modes_fx.bench.threads import torch_threads

WEIGHTS_AT_MOST = 4 * 10**9
"""Bytes of weights that copies of a layer may take."""


@dataclass(frozen=True)
class LayerPlan:
    """What to measure.

    Attributes:
        shape: the layer.
        tokens: numbers of tokens.
        skips: skip ratios.
        dtype: of weights and tokens.
        threads: that torch may use.
        baselines: implementations beside ours, by name.
        layouts: of our weights.
        rounds: how often everything is timed.
        cache: bytes of the last-level cache; None asks the system.
    """

    shape: LayerShape
    tokens: Sequence[int] = (1, 16, 512, 2048)
    skips: Sequence[float] = (0.0, 0.5, 0.88)
    dtype: torch.dtype = torch.bfloat16
    threads: int = 1
    baselines: Sequence[str] = DEFAULT_BASELINES
    layouts: Sequence[Layout] = ("default", "prepacked")
    rounds: int = 9
    cache: int | None = None


def bench_layer(
    plan: LayerPlan, on_progress: Callable[[str], None] = lambda doing: None
) -> LayerBench:
    """Measure.

    Args:
        plan: what to measure.
        on_progress: told what is being done.

    Raises:
        ValueError: an implementation that is not registered, a skip ratio outside of 0 to 1, or no
            tokens.
    """
    with torch_threads(plan.threads), torch.inference_mode():
        return _bench_layer(plan, on_progress)


def _bench_layer(plan: LayerPlan, on_progress: Callable[[str], None]) -> LayerBench:
    implementations = find_implementations([OURS, *plan.baselines])
    cache = last_level_cache() if plan.cache is None else plan.cache
    left_out: list[str] = []
    on_progress(f"{plan.shape.name}: random weights")
    layer = _build(plan, cache, left_out)
    prepared = _prepare(plan, implementations, layer, left_out)
    on_progress(f"{plan.shape.name}: the machine's ceilings")
    clock = clock_for(plan.threads)
    gemm = gemm_ceiling(plan.shape, plan.dtype, clock)
    reader = bandwidth_ceiling(cache, clock)
    sizes, rows = [], []
    for tokens in plan.tokens:
        on_progress(f"{plan.shape.name}: {tokens} tokens")
        size = Size(layer, tokens, plan.skips, prepared)
        left_out += size.left_out
        section, own_rows = size.measure(gemm, reader, plan.rounds, plan.threads)
        sizes.append(section)
        rows += own_rows
    return LayerBench(
        environment=describe_environment(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cache_mib=cache / 2**20,
        clock=clock,
        rounds=plan.rounds,
        copies=len(layer.copies),
        gemm=gemm.name,
        reader=reader.name,
        tolerance=TOLERANCE[plan.dtype],
        sizes=sizes,
        rows=rows,
        left_out=left_out,
    )


def _build(plan: LayerPlan, cache: int, left_out: list[str]) -> Layer:
    needed = max(
        copies_needed(plan.shape, tokens, max(plan.skips), plan.dtype, cache)
        for tokens in plan.tokens
    )
    one = plan.shape.experts * plan.shape.expert_parameters * plan.dtype.itemsize
    copies = max(1, min(needed, WEIGHTS_AT_MOST // one))
    if copies < needed:
        left_out.append(
            f"{copies} copies of the layer take turns, not the {needed} that {CACHES} times the "
            f"last-level cache needs: more than {WEIGHTS_AT_MOST / 1e9:.0f} GB. Few tokens may "
            "find weights in the cache"
        )
    return Layer.build(plan.shape, plan.dtype, copies)


def _prepare(
    plan: LayerPlan,
    implementations: Sequence[Implementation],
    layer: Layer,
    left_out: list[str],
) -> list[Prepared]:
    prepared = []
    for one in implementations:
        for layout in one.layouts:
            if layout in plan.layouts or one.name != OURS:
                try:
                    prepared.append(Prepared(one, layout, one.prepare(layer, layout)))
                except NotAvailableError as reason:
                    left_out.append(f"{one.name} ({layout}): {reason}")
    return prepared
