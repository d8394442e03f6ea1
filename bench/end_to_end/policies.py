"""The policy that is timed, and how much it skips."""

from pathlib import Path

import torch
from torch import Tensor

import modes_fx
from modes_fx import Modality, SkipPolicy, modes_backend
from modes_fx.bench.demo.generation import generate, many_captures
from modes_fx.bench.end_to_end.prompts import Source
from modes_fx.calibration import preset_policy

PRESET = "preset"


def policy_for(source: Source, folder: Path | None) -> SkipPolicy:
    """Read a policy, or make a preset where there is none: enough for speed, not for quality.

    Raises:
        PolicyError: the folder holds no policy.
    """
    if folder is None:
        return preset_policy(source.load()[0])
    return SkipPolicy.from_pretrained(folder)


def skipped_shares(
    source: Source, policy: SkipPolicy, inputs: dict[str, Tensor]
) -> tuple[int, dict[float, float]]:
    """Count what is skipped while the prompts are answered.

    Returns:
        How many layers have experts; and by target the share of their pairs that is skipped.
    """
    model = source.load()[0]
    modes_fx.attach(model, policy, count_pairs=True)
    model.get_decoder().compile(backend=modes_backend, options={"compiler": "eager"}, dynamic=False)
    shares = {}
    with many_captures():
        for target in policy.targets:
            modes_fx.set_target(model, target)
            generate(model, inputs)
            counts = modes_fx.pair_counts(model, reset=True)
            total = torch.stack(list(counts.values())).sum(0)  # [M, 2]
            total[Modality.PADDING] = 0
            pairs, kept = total.sum(0).tolist()
            shares[target] = 1 - kept / pairs
    torch.compiler.reset()
    return len(modes_fx.pair_counts(model)), shares
