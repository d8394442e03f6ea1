"""Time ``generate`` on questions about images: as transformers runs it, and with experts skipped.

All cases go through the same call with a static cache and a fixed number of new tokens. What is
compiled is the language model, in all cases alike: the vision tower breaks graphs, so compiling it
as well would take longer without telling the cases apart.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, ProcessorMixin

import modes_fx
from modes_fx import MatchError, SkipPolicy, modes_backend
from modes_fx.bench.demo.report import TimedCase, TimingSection
from modes_fx.bench.demo_model import encode, heldout_questions
from modes_fx.bench.timing import Samples, Stopwatch, fastest, interleaved, summarise

BATCH = 8
NEW_TOKENS = 17
CAPTURES = 1000
"""Dynamo captures each layer by itself where images enter between them, and gives up on them all,
silently for a baseline, after eight captures by default."""
PREFILL, DECODE = "prefill", "decode"

Load = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
Inputs = dict[str, Tensor]

PEERS: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "HF eager, loop over experts": ("eager", False),
        "HF eager, grouped_mm": ("grouped_mm", False),
        "HF compiled, grouped_mm": ("grouped_mm", True),
        "HF compiled, batched_mm": ("batched_mm", True),
    }
)
"""transformers' ways: the implementation of its experts, and whether it is compiled."""


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Attributes:
        model: loaded, and compiled or attached as it is to be run.
        compile_seconds: what its first call took; None where nothing is compiled.
        target: the policy's target; None where nothing is skipped.
        ours: whether it runs through modes_backend.
    """

    model: PreTrainedModel
    compile_seconds: float | None = None
    target: float | None = None
    ours: bool = False


def require_compiler() -> None:
    """Check that inductor can compile for a CPU.

    Raises:
        MatchError: there is no C++ compiler.
    """
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise MatchError(
            "torch.compile needs a C++ compiler and found none: install one (Debian, Ubuntu: "
            "apt-get install g++), or name it in the environment variable CXX"
        ) from None


def time_generation(
    load: Load,
    policy: SkipPolicy,
    rounds: int,
    on_progress: Callable[[float], None] = lambda done: None,
) -> TimingSection:
    """Compile and time every way to run the model.

    Args:
        load: makes a fresh copy of the model, with its processor.
        policy: what our ways skip by.
        rounds: how often each way runs.
        on_progress: called with the share that is done; compiling counts for half.
    """
    questions = [question for question in heldout_questions(BATCH) if len(question.images) == 1]
    inputs = encode(load()[1], questions[:BATCH])
    return time_ways(load, inputs, policy, rounds, on_progress)


def time_ways(
    load: Load,
    inputs: Inputs,
    policy: SkipPolicy,
    rounds: int,
    on_progress: Callable[[float], None] = lambda done: None,
    *,
    compiler: str = "inductor",
) -> TimingSection:
    """Compile and time every way to run any model, on a batch of prompts.

    Args:
        load: makes a fresh copy of the model, with its processor.
        inputs: of ``generate``.
        policy: what our ways skip by.
        rounds: how often each way runs.
        on_progress: called with the share that is done; compiling counts for half.
        compiler: of everything that is compiled: "inductor", or "eager" for a first try.
    """
    with many_captures():
        return _time_ways(load, inputs, policy, rounds, on_progress, compiler)


def many_captures() -> AbstractContextManager[None]:
    """Let Dynamo capture as often as there are layers and ways."""
    limits = {"recompile_limit": CAPTURES, "accumulated_recompile_limit": CAPTURES}
    patched: AbstractContextManager[None] = dynamo_config.patch(limits)
    return patched


def generate(model: PreTrainedModel, inputs: Inputs, *processors: LogitsProcessor) -> Tensor:
    """Generate ``NEW_TOKENS`` tokens greedily, also past the end of the answer.

    Args:
        model: any of the ways to run it.
        inputs: a batch of prompts.
        processors: see every step's logits.

    Returns:
        int64 ``[B, S + NEW_TOKENS]``.
    """
    with torch.inference_mode():
        tokens: Tensor = model.generate(
            **inputs,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            cache_implementation="static",
            logits_processor=LogitsProcessorList(processors),
        )
    return tokens


class PhaseMarker(LogitsProcessor):
    """Ends the phases of a generation: the first logits end the prefill, the others decode steps.

    It leaves the logits as they are.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        """Mark the phases of one generation."""
        self._stopwatch = stopwatch
        self._phase = PREFILL

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return ``scores``."""
        self._stopwatch.lap(self._phase)
        self._phase = DECODE
        return scores


def _time_ways(
    load: Load,
    inputs: Inputs,
    policy: SkipPolicy,
    rounds: int,
    on_progress: Callable[[float], None],
    compiler: str,
) -> TimingSection:
    model = load()[0]
    expected = generate(model, inputs)
    # First, because attaching makes torch capture anew what was compiled before.
    ours, seconds = our_model(load, inputs, policy, compiler)
    tokens_equal = torch.equal(expected, generate(ours, inputs))
    on_progress(0.5 / (len(PEERS) + 1))
    ways: dict[str, Way] = {}
    for number, (name, (experts, compiled)) in enumerate(PEERS.items(), start=2):
        ways[name] = Way(*peer_model(load, inputs, experts, compiled, compiler))
        on_progress(0.5 * number / (len(PEERS) + 1))
    ways["MoDES-FX, nothing skipped"] = Way(ours, seconds, ours=True)
    for target in policy.targets:
        ways[f"MoDES-FX, target {target:.0%}"] = Way(ours, None, target, ours=True)
    samples = interleaved(
        {name: partial(_timed_generation, way, inputs) for name, way in ways.items()},
        rounds,
        on_round=lambda done: on_progress(0.5 + 0.5 * done / rounds),
    )
    baselines = {phase: fastest(samples, phase, list(PEERS)) for phase in (PREFILL, DECODE)}
    batch = len(inputs["input_ids"])
    return TimingSection(
        batch=batch,
        prompt_tokens=inputs["input_ids"].shape[1],
        new_tokens=NEW_TOKENS,
        rounds=rounds,
        prefill_baseline=baselines[PREFILL],
        decode_baseline=baselines[DECODE],
        tokens_equal=tokens_equal,
        cases=_timed_cases(ways, samples, baselines, batch),
    )


def _timed_generation(way: Way, inputs: Inputs, stopwatch: Stopwatch) -> None:
    if way.ours:
        modes_fx.set_target(way.model, way.target)
    generate(way.model, inputs, PhaseMarker(stopwatch))


def peer_model(
    load: Load, inputs: Inputs, experts: str, compiled: bool, compiler: str = "inductor"
) -> tuple[PreTrainedModel, float | None]:
    """Load a model as transformers runs it.

    Args:
        load: makes a fresh copy of the model.
        inputs: what it is compiled for.
        experts: the implementation of its experts.
        compiled: whether its decoder is compiled.
        compiler: what by.

    Returns:
        The model, and the seconds of the first call where it is compiled.
    """
    model = load()[0]
    model.set_experts_implementation(experts)
    if not compiled:
        return model, None
    return model, _compile_decoder(model, inputs, backend=compiler)


def our_model(
    load: Load, inputs: Inputs, policy: SkipPolicy, compiler: str = "inductor"
) -> tuple[PreTrainedModel, float]:
    """Load a model, attach a policy with nothing skipped yet, and compile its decoder.

    Returns:
        The model, and the seconds of the first call.
    """
    model = load()[0]
    modes_fx.attach(model, policy)
    modes_fx.set_target(model, None)
    options = {"compiler": compiler}
    return model, _compile_decoder(model, inputs, backend=modes_backend, options=options)


def _compile_decoder(model: PreTrainedModel, inputs: Inputs, **options: Any) -> float:
    # The shapes are fixed here; symbolic ones take much longer to capture and are no faster.
    model.get_decoder().compile(dynamic=False, **options)
    started = time.perf_counter()
    generate(model, inputs)
    return time.perf_counter() - started


def _timed_cases(
    ways: Mapping[str, Way],
    samples: Mapping[str, Samples],
    baselines: Mapping[str, str],
    batch: int,
) -> list[TimedCase]:
    prefill, decode = (summarise(samples, phase, baselines[phase]) for phase in (PREFILL, DECODE))
    return [
        TimedCase(
            name=name,
            compile_seconds=way.compile_seconds,
            target=way.target,
            ours=way.ours,
            prefill=prefill[name],
            decode=decode[name],
            decode_tokens_per_second=batch * (NEW_TOKENS - 1) / decode[name].wall.median,
        )
        for name, way in ways.items()
    ]
