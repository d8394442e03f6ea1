"""alpha: how much the answers change when one layer's experts are removed for one modality."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.request import Request
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import CALIBRATED, ModalityName

AlphaMode = Literal["per_modality", "shared"]
Alpha = dict[str, dict[ModalityName, float]]


def measure_alpha(
    evaluator: Evaluator,
    modalities: Sequence[ModalityName],
    mode: AlphaMode = "per_modality",
    *,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Alpha:
    """Measure alpha of every layer: mean KL(full || layer removed) over the answer tokens.

    Removed means that the layer's routed experts add nothing to the tokens concerned.

    Args:
        evaluator: inside its ``with`` block.
        modalities: those with calibration tokens.
        mode: ``"per_modality"`` removes a layer for one modality at a time; ``"shared"`` for all of
            them together, which gives them the same alpha.
        on_progress: called with the share of the passes that is done.

    Returns:
        ``{layer path: {modality: alpha >= 0}}`` in nats. Takes one pass over the samples for each
        layer and modality, or for each layer.
    """
    groups = [list(modalities)] if mode == "shared" else [[name] for name in modalities]
    alpha: Alpha = {path: {} for path in evaluator.layers}
    removals = list(product(alpha, groups))
    for number, (path, group) in enumerate(removals, start=1):
        kl = evaluator.measure(Request.of({path: removed_theta(group)})).kl
        alpha[path].update(dict.fromkeys(group, max(kl, 0.0)))
        on_progress(number / len(removals))
    return alpha


def removed_theta(modalities: Sequence[ModalityName]) -> Tensor:
    """Return thresholds ``[M]`` that skip every pair of these modalities and keep all others."""
    theta = keep_all_theta()
    for name in modalities:
        theta[CALIBRATED[name]] = torch.inf
    return theta


def normalise_alpha(alpha: Mapping[str, Mapping[ModalityName, float]]) -> Alpha:
    """Scale the alphas of each modality to sum to 1 over the layers; all zeros stay zeros."""
    names = {name for constants in alpha.values() for name in constants}
    total = {name: sum(constants[name] for constants in alpha.values()) for name in names}
    return {
        path: {name: value / (total[name] or 1.0) for name, value in constants.items()}
        for path, constants in alpha.items()
    }
