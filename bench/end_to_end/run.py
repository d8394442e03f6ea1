"""Measure generation: all ways in turns for each batch size, then compiling, in other processes."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modes_fx.bench.demo.generation import PEERS, time_ways
from modes_fx.bench.end_to_end.policies import PRESET, policy_for, skipped_shares
from modes_fx.bench.end_to_end.prompts import Source
from modes_fx.bench.end_to_end.report import Compilation, EndToEnd
from modes_fx.bench.end_to_end.worker import OURS, Worked
from modes_fx.bench.environment import describe_environment
from modes_fx.bench.threads import torch_threads

WORK_SECONDS = 3600


@dataclass(frozen=True)
class EndToEndPlan:
    """What to measure.

    Attributes:
        source: the model and its prompts.
        policy: its folder; None for a preset.
        batches: prompts of a call.
        rounds: how often everything is timed.
        threads: that torch may use.
        compiler: "inductor", or "eager" for a first try.
        compilation: whether compiling is measured in processes of its own; takes twice as long as
            compiling everything once more.
    """

    source: Source
    policy: Path | None = None
    batches: Sequence[int] = (1, 4, 16)
    rounds: int = 5
    threads: int = 1
    compiler: str = "inductor"
    compilation: bool = True


def bench_end_to_end(
    plan: EndToEndPlan, on_progress: Callable[[str], None] = lambda doing: None
) -> EndToEnd:
    """Measure.

    Args:
        plan: what to measure.
        on_progress: told what is being done.

    Raises:
        ValueError: the model cannot be loaded, or takes no images.
        PolicyError: the policy is for another model.
        RuntimeError: a process that compiles failed.
    """
    with torch_threads(plan.threads):
        model = plan.source.load()[0]
        policy = policy_for(plan.source, plan.policy)
        policy.check_model(model)
        on_progress("counting what is skipped")
        first = plan.source.prompts(plan.batches[0])
        layers, skipped = skipped_shares(plan.source, policy, first)
        batches = []
        for batch in plan.batches:

            def show(done: float, batch: int = batch) -> None:
                on_progress(f"batch {batch}: {done:.0%}")

            inputs = plan.source.prompts(batch)
            batches.append(
                time_ways(
                    plan.source.load, inputs, policy, plan.rounds, show, compiler=plan.compiler
                )
            )
        ways = [OURS, *(name for name, (_, compiled) in PEERS.items() if compiled)]
        return EndToEnd(
            environment=describe_environment(),
            model=plan.source.name,
            layers=layers,
            dtype=str(model.dtype).removeprefix("torch."),
            policy=PRESET if plan.policy is None else str(plan.policy),
            compiler=plan.compiler,
            skipped=skipped,
            batches=batches,
            compilations=[
                compile_apart(plan, way, on_progress) for way in ways if plan.compilation
            ],
        )


def compile_apart(
    plan: EndToEndPlan, way: str, on_progress: Callable[[str], None] = lambda doing: None
) -> Compilation:
    """Compile a way in two processes, one after the other, that share a new compile cache.

    Raises:
        RuntimeError: one of them failed; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as cache:
        on_progress(f"compiling {way}, cold")
        cold = _work(plan, way, cache)
        on_progress(f"compiling {way}, warm")
        warm = _work(plan, way, cache)
    return Compilation(
        way=way,
        cold_seconds=cold.seconds,
        warm_seconds=warm.seconds,
        graphs=warm.graphs,
        recompiled=warm.recompiled,
        peak_bytes=warm.peak_bytes,
        weight_bytes=warm.weight_bytes,
    )


def _work(plan: EndToEndPlan, way: str, cache: str) -> Worked:
    source = plan.source
    words = [source.name, way, str(plan.batches[0]), plan.compiler]
    words += ["--threads", str(plan.threads)]
    words += [] if plan.policy is None else ["--policy", str(plan.policy)]
    words += [] if source.image_side is None else ["--image-side", str(source.image_side)]
    words += ["--trust-remote-code"] if source.trust_remote_code else []
    done = subprocess.run(
        [sys.executable, "-m", "modes_fx.bench.end_to_end.worker", *words],
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(plan.threads)},
        capture_output=True,
        text=True,
        check=False,
        timeout=WORK_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(
            f"the process that compiles {way} for {source.name} failed with exit code "
            f"{done.returncode}; it wrote:\n{done.stderr[-2000:]}"
        )
    return Worked.model_validate_json(done.stdout.strip().splitlines()[-1])
