"""Measure a whole model: every way to run it, in turns, in both phases."""

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch._dynamo import config as dynamo_config
from transformers import PreTrainedModel

from modes_fx.bench.environment import describe_environment, last_level_cache
from modes_fx.bench.layer.ceilings import Ceiling, bandwidth_ceiling, gemm_ceiling
from modes_fx.bench.layer.size import clock_for
from modes_fx.bench.layer.weights import Layout
from modes_fx.bench.model.build import ModelShape, build_model, make_prompt, share_weights
from modes_fx.bench.model.phases import DECODE, DECODE_STEPS, PHASES, PREFILL, Phase, Session
from modes_fx.bench.model.reference import Reference, make_reference, typical_error
from modes_fx.bench.model.report import ModelBench
from modes_fx.bench.model.results import RUN, Entry, Results
from modes_fx.bench.model.ways import (
    HF_WAYS,
    OURS,
    WITHOUT_BOTH,
    WITHOUT_EXPERTS,
    Compiler,
    Prompt,
    Way,
    check_baselines,
    hf_way,
    our_way,
    without_parts,
)
from modes_fx.bench.threads import torch_threads
from modes_fx.bench.timing import Case, Samples, Stopwatch, interleaved

CAPTURES = 1000
"""Dynamo captures each layer by itself, for each way; it gives up after eight by default."""
TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-3}
"""The largest error by dtype."""


@dataclass(frozen=True)
class ModelPlan:
    """What to measure.

    Attributes:
        shape: the model.
        baselines: transformers' ways, by name.
        layers: of the language model.
        prompt: tokens of the prompt; decode begins after them.
        skips: skip ratios; 0 is always measured.
        dtype: of weights.
        threads: that torch may use.
        layouts: of our weights.
        rounds: how often everything is timed.
        cache: bytes of the last-level cache; None asks the system.
        compiler: of everything that is compiled.
    """

    shape: ModelShape
    baselines: Sequence[str] = tuple(HF_WAYS)
    layers: int = 2
    prompt: int = 1024
    skips: Sequence[float] = (0.0, 0.5, 0.88)
    dtype: torch.dtype = torch.bfloat16
    threads: int = 1
    layouts: Sequence[Layout] = ("default", "prepacked")
    rounds: int = 5
    cache: int | None = None
    compiler: Compiler = "inductor"


def bench_model(
    plan: ModelPlan, on_progress: Callable[[str], None] = lambda doing: None
) -> ModelBench:
    """Measure.

    Args:
        plan: what to measure.
        on_progress: told what is being done.

    Raises:
        ValueError: an unknown baseline, or a prompt shorter than its image.
    """
    limits = {"recompile_limit": CAPTURES, "accumulated_recompile_limit": CAPTURES}
    with torch_threads(plan.threads), torch.inference_mode(), dynamo_config.patch(limits):
        return _bench_model(plan, on_progress)


def _bench_model(plan: ModelPlan, on_progress: Callable[[str], None]) -> ModelBench:
    check_baselines(plan.baselines)
    skips = sorted({0.0, *plan.skips})
    on_progress("random weights")
    prompt = make_prompt(plan.shape, plan.prompt, plan.dtype)
    model = _build(plan)
    ways = _make_ways(plan, model, prompt)
    on_progress("what the model gives when pairs are skipped")
    original = Session(share_weights(model), prompt)
    original.model.set_experts_implementation("eager")
    references = {skip: make_reference(original, skip) for skip in skips}
    entries = [Entry(way, skip) for way in ways.values() for skip in skips if way.ours or skip == 0]
    errors: dict[tuple[str, Phase], float] = {}
    for entry in entries:
        on_progress(f"compiling {entry}")
        errors |= _compare(entry, references[entry.skip])
    clock = clock_for(plan.threads)
    cache = last_level_cache() if plan.cache is None else plan.cache
    gemm = gemm_ceiling(plan.shape.experts, plan.dtype, clock)
    reader = bandwidth_ceiling(cache, clock)
    results = Results(
        shape=plan.shape.experts,
        layers=plan.layers,
        tokens={PREFILL: plan.prompt, DECODE: 1},
        dtype=plan.dtype,
        clock=clock,
        tolerance=TOLERANCE[plan.dtype],
        entries=entries,
        references=references,
        errors=errors,
        samples=_time(entries, references, gemm, reader, plan.rounds, on_progress),
        gemm=gemm,
        reader=reader,
    )
    return ModelBench(
        environment=describe_environment(),
        capability=torch.backends.cpu.get_cpu_capability(),
        compiler=plan.compiler,
        model=plan.shape.name,
        layers=plan.layers,
        prompt=plan.prompt,
        image_tokens=plan.shape.image_tokens,
        dtype=str(plan.dtype).removeprefix("torch."),
        threads=plan.threads,
        clock=clock,
        rounds=plan.rounds,
        gemm_gflops=results.gemm_rate / 1e9,
        read_gbps=results.read_rate / 1e9,
        tolerance=results.tolerance,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        phases=[results.section(phase) for phase in PHASES],
        rows=results.rows(),
    )


def _build(plan: ModelPlan) -> PreTrainedModel:
    return build_model(plan.shape, plan.layers, plan.prompt + DECODE_STEPS, plan.dtype)


def _make_ways(plan: ModelPlan, model: PreTrainedModel, prompt: Prompt) -> dict[str, Way]:
    ways = {}
    for layout in plan.layouts:
        own = _build(plan) if layout == "prepacked" else model
        ways[f"{OURS} {layout}"] = our_way(layout, own, prompt, plan.compiler)
    for name in plan.baselines:
        ways[name] = hf_way(name, model, prompt, plan.compiler)
    for name in (WITHOUT_EXPERTS, WITHOUT_BOTH):
        ways[name] = without_parts(name, model, prompt, plan.compiler)
    return ways


def _compare(entry: Entry, reference: Reference) -> dict[tuple[str, Phase], float]:
    """Compare what a way gives in each of its phases; this compiles it, too."""
    errors = {}
    for phase in entry.way.phases:
        if entry.way.ours:
            entry.way.set_thresholds(reference.thresholds[phase])
        logits = entry.way.session.every_token(phase)
        errors[str(entry), phase] = typical_error(logits, reference.logits[phase])
    return errors


def _time(
    entries: Sequence[Entry],
    references: Mapping[float, Reference],
    gemm: Ceiling,
    reader: Ceiling,
    rounds: int,
    on_progress: Callable[[str], None],
) -> dict[str, Samples]:
    cases: dict[str, Case] = {
        ceiling.name: partial(_run_ceiling, ceiling) for ceiling in (gemm, reader)
    }
    for entry in entries:
        cases[str(entry)] = partial(_run_phases, entry, references[entry.skip])
    return interleaved(
        cases, rounds, on_round=lambda done: on_progress(f"round {done} of {rounds}")
    )


def _run_ceiling(ceiling: Ceiling, stopwatch: Stopwatch) -> None:
    ceiling.run()
    stopwatch.lap(RUN)


def _run_phases(entry: Entry, reference: Reference, stopwatch: Stopwatch) -> None:
    for phase in entry.way.phases:
        if entry.way.ours:
            entry.way.set_thresholds(reference.thresholds[phase])
        stopwatch.lap("between")
        entry.way.session.run(phase)
        stopwatch.lap(phase)
