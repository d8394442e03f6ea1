"""Compile one way in a process of its own: ``python -m modes_fx.bench.end_to_end.worker``.

Memory and the caches of compilers belong to a process, so each is measured in one that does nothing
else. The last line of standard output is a ``Worked`` as JSON.
"""

import resource
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import BaseModel
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

import modes_fx
from modes_fx.bench.demo.generation import PEERS, generate, many_captures, our_model, peer_model
from modes_fx.bench.end_to_end.policies import policy_for
from modes_fx.bench.end_to_end.prompts import Source

OURS = "MoDES-FX"


class Worked(BaseModel):
    """What one process measured; see ``report.Compilation``."""

    seconds: float
    graphs: int
    recompiled: int
    peak_bytes: int
    weight_bytes: int


def work(
    model: str,
    way: str,
    batch: int,
    compiler: str,
    policy: Annotated[Path | None, typer.Option()] = None,
    image_side: Annotated[int | None, typer.Option()] = None,
    trust_remote_code: Annotated[bool, typer.Option()] = False,
    threads: Annotated[int, typer.Option()] = 1,
) -> None:
    """Compile and print what it took."""
    torch.set_num_threads(threads)
    with redirect_stdout(StringIO()), many_captures():
        worked = measure(Source(model, image_side, trust_remote_code), way, batch, compiler, policy)
    typer.echo(worked.model_dump_json())


def measure(source: Source, way: str, batch: int, compiler: str, folder: Path | None) -> Worked:
    """Compile a way and call it again, at every target where it is ours.

    Args:
        source: of the model.
        way: a compiled one of ``PEERS``, or ``OURS``.
        batch: prompts of a call.
        compiler: "inductor" or "eager".
        folder: of the policy; None for a preset.
    """
    inputs = source.prompts(batch)
    ready: PreTrainedModel
    if way == OURS:
        policy = policy_for(source, folder)
        counters.clear()
        ready, seconds = our_model(source.load, inputs, policy, compiler)
        first = _graphs()
        for target in policy.targets:
            modes_fx.set_target(ready, target)
            generate(ready, inputs)
    else:
        experts, compiled = PEERS[way]
        counters.clear()
        ready, first_call = peer_model(source.load, inputs, experts, compiled, compiler)
        seconds, first = first_call or 0.0, _graphs()
        generate(ready, inputs)
    return Worked(
        seconds=seconds,
        graphs=first,
        recompiled=_graphs() - first,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        weight_bytes=sum(p.numel() * p.element_size() for p in ready.parameters()),
    )


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    typer.run(work)
