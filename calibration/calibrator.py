"""calibrate: from a model and samples to a policy, the method's constants with their provenance."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from modes_fx.attach import find_expert_modules, is_attached
from modes_fx.calibration.alpha import Alpha, AlphaMode, measure_alpha, normalise_alpha
from modes_fx.calibration.curves import quantile_curves, release_curves
from modes_fx.calibration.data import (
    Batch,
    calibrated_modalities,
    count_tokens,
    token_codes,
)
from modes_fx.calibration.encode import Chat, encode_chats
from modes_fx.calibration.evaluator import Evaluator, keep_all_policy
from modes_fx.calibration.pairs import Shares, recorded_shares
from modes_fx.calibration.progress import shown_progress
from modes_fx.calibration.reference import Reference
from modes_fx.calibration.search import Frontier, UnreachableTargetError, search_frontier
from modes_fx.fingerprint import config_hash
from modes_fx.modality import TokenIds
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Provenance, Reached, target_key
from modes_fx.vocabulary import CALIBRATED, Modality

TARGETS = (0.5, 0.75, 0.88)
RECORDED_TOKENS = 1 << 16
"""The most tokens whose shares are recorded in each layer: enough for any quantile of use."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        alpha_mode: ``"per_modality"`` measures alpha for each modality, ``"shared"`` one for all.
        alpha_exponent: the exponent on alpha; 1 is the method, 0 does without alpha.
        share: what is compared with thresholds; None chooses by the model's top-k.
        special_tokens: whether the tokenizer's special tokens never skip or count as text.
        curves: where the search looks for tau: along quantiles of what the model's shares are, or
            along the ``"release"``'s fixed curves.
        size: how many places of each target's frontier are measured.
        tolerance: by how much the skip ratio may exceed a target.
        batch_size: the most samples that go through the model together.
        compiler: see ``modes_fx.backend.BackendOptions``.
        data_name: what the policy's provenance calls the data.
        seed: the seed that drew the samples, for the provenance: calibration draws nothing.
    """

    alpha_mode: AlphaMode = "per_modality"
    alpha_exponent: float = 1.0
    share: Literal["renormalised", "weight"] | None = None
    special_tokens: Literal["keep", "text"] = "keep"
    curves: Literal["quantile", "release"] = "quantile"
    size: int = 11
    tolerance: float = 0.005
    batch_size: int = 16
    compiler: Literal["inductor", "eager"] = "eager"
    data_name: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Calibration:
    """A policy and how it was found.

    Attributes:
        policy: the result.
        alpha: as measured, in nats; the policy's are normalised.
        frontier: the search for tau.
        reference: the samples, and what the full model says to them.
        shares: the full model's routing shares on some of their tokens.
    """

    policy: SkipPolicy
    alpha: Alpha
    frontier: Frontier
    reference: Reference
    shares: Shares


def calibrate(
    model: PreTrainedModel,
    processor: Any,
    data: Sequence[Chat] | Sequence[Batch],
    targets: Iterable[float] = TARGETS,
    *,
    options: CalibrationOptions | None = None,
    progress: bool = True,
) -> SkipPolicy:
    """Find the constants that skip given parts of the experts' work at the least change of answers.

    Args:
        model: a transformers model, not attached; as it was again afterwards.
        processor: its processor, or its tokenizer where it has no processor.
        data: samples: chats (message lists) that end with the assistant's answer, or batches.
        targets: skip ratios to find thresholds for.
        options: how; by default :class:`CalibrationOptions`.
        progress: whether to show a summary and progress bars on standard error.

    Returns:
        A policy for ``modes_fx.attach``, to be saved with ``policy.save_pretrained``.

    Raises:
        UnreachableTargetError: a target is higher than what can be skipped in the data.
        MatchError: an MoE layer of the model cannot be rewritten.
        ValueError: the model has no MoE layer or is attached, or the data is of no use; says why.
    """
    return run_calibration(
        model, processor, data, targets, options=options, progress=progress
    ).policy


def run_calibration(
    model: PreTrainedModel,
    processor: Any,
    data: Sequence[Chat] | Sequence[Batch],
    targets: Iterable[float] = TARGETS,
    *,
    options: CalibrationOptions | None = None,
    progress: bool = True,
) -> Calibration:
    """Do what :func:`calibrate` does and return also how the policy was found."""
    options = options or CalibrationOptions()
    ordered = _check_targets(targets)
    _check_model(model)
    batches = _as_batches(processor, data, options)
    draft = _draft_policy(model, processor, options)
    codes = (token_codes(model, batch.inputs, draft.special_token_ids) for batch in batches)
    tokens = count_tokens(codes)
    modalities = calibrated_modalities(tokens)
    _check_reachable(ordered[-1], tokens)
    every = math.ceil(sum(tokens.values()) / RECORDED_TOKENS)
    summary = _summary(model, batches, tokens, options, len(ordered))
    with shown_progress(summary, show=progress) as stage:
        with recorded_shares(model, draft, every) as shares:
            reference = Reference.record(model, batches)
        with Evaluator(model, reference, draft, compiler=options.compiler) as evaluator:
            alpha = measure_alpha(
                evaluator, modalities, options.alpha_mode, on_progress=stage("alpha")
            )
            draft = draft.model_copy(update={"alpha": normalise_alpha(alpha)})
            frontier = search_frontier(
                evaluator,
                draft,
                ordered,
                quantile_curves(shares, draft, modalities)
                if options.curves == "quantile"
                else release_curves(modalities),
                size=options.size,
                tolerance=options.tolerance,
                on_progress=stage("tau"),
            )
    provenance = _provenance(reference, tokens, frontier, options)
    return Calibration(_policy(draft, frontier, provenance), alpha, frontier, reference, shares)


def _check_targets(targets: Iterable[float]) -> list[float]:
    ordered = sorted(set(targets))
    if not ordered or not all(0 < target < 1 for target in ordered):
        raise ValueError(f"targets are skip ratios between 0 and 1, got {ordered}")
    return ordered


def _check_model(model: PreTrainedModel) -> None:
    if is_attached(model):
        raise ValueError("a policy is attached to the model: call modes_fx.detach(model) first")
    if not find_expert_modules(model):
        raise ValueError(
            f"{type(model).__name__} has no MoE layer to calibrate: no module owns two or more "
            "stacked expert weights of shape [E, ., .]"
        )


def _as_batches(
    processor: Any, data: Sequence[Chat] | Sequence[Batch], options: CalibrationOptions
) -> list[Batch]:
    batches = [item for item in data if isinstance(item, Batch)]
    if batches and len(batches) == len(data):
        return batches
    return encode_chats(processor, data, options.batch_size)  # type: ignore[arg-type]


def _draft_policy(
    model: PreTrainedModel, processor: Any, options: CalibrationOptions
) -> SkipPolicy:
    """A policy that keeps all, with everything that is known before measuring."""
    tokenizer = getattr(processor, "tokenizer", processor)
    keep = options.special_tokens == "keep"
    special = TokenIds.from_config(model.config, tokenizer.all_special_ids).special
    name = str(getattr(model.config, "name_or_path", ""))
    fields = {
        "share": options.share,
        "alpha_mode": options.alpha_mode,
        "alpha_exponent": float(options.alpha_exponent),
        "special_tokens": options.special_tokens,
        "special_token_ids": list(special) if keep else [],
        "model_id": (Path(name).name if Path(name).exists() else name) or None,
        "model_type": model.config.model_type,
        "config_hash": config_hash(model.config),
    }
    return SkipPolicy(**{**keep_all_policy(model).model_dump(), **fields})


def _check_reachable(target: float, tokens: Mapping[Modality, int]) -> None:
    total = sum(tokens.values()) - tokens[Modality.PADDING]
    most = 1 - tokens[Modality.OTHER] / total
    if target > most:
        raise UnreachableTargetError(
            f"the target {target} cannot be reached: {1 - most:.1%} of the data's tokens are "
            f"special tokens, which never skip, so at most {most:.1%} of the pairs can be skipped, "
            f"{target - most:.1%} too few. Ask for at most {math.floor(most * 1000) / 1000}, "
            "calibrate on longer samples, or let them count as text: "
            "CalibrationOptions(special_tokens='text')"
        )


def _summary(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    tokens: Mapping[Modality, int],
    options: CalibrationOptions,
    targets: int,
) -> str:
    layers = find_expert_modules(model)
    experts = {next(layer.parameters()).shape[0] for layer in layers.values()}
    shown = [m for m in Modality if m is not Modality.PADDING and tokens[m]]
    counted = ", ".join(f"{tokens[m]:,} {m.label}" for m in shown)
    modalities = sum(tokens[m] > 0 for m in CALIBRATED.values())
    for_alpha = len(layers) * (modalities if options.alpha_mode == "per_modality" else 1)
    for_tau = targets * (round(1.5 * (options.size + 2)) if modalities > 1 else 4)
    return (
        f"Calibrating {len(layers)} MoE layers of {'/'.join(map(str, sorted(experts)))} experts on "
        f"{sum(len(batch.samples) for batch in batches)} samples ({counted} tokens): 1 pass over "
        f"them with the full model, {for_alpha} for alpha, about {for_tau} for tau"
    )


def _provenance(
    reference: Reference,
    tokens: Mapping[Modality, int],
    frontier: Frontier,
    options: CalibrationOptions,
) -> Provenance:
    reached = {
        target: Reached(
            kl=found.measurement.kl,
            skip_ratio=found.measurement.skip_ratio,
            skip_ratio_by_modality=found.measurement.skip_ratio_by_modality,
        )
        for target, found in frontier.found.items()
    }
    return Provenance(
        data=options.data_name,
        samples=reference.samples,
        tokens={name: tokens[modality] for name, modality in CALIBRATED.items()},
        seed=options.seed,
        versions={name: version(name) for name in ("modes-fx", "torch", "transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        reached={target_key(target): entry for target, entry in reached.items()},
    )


def _policy(draft: SkipPolicy, frontier: Frontier, provenance: Provenance) -> SkipPolicy:
    fields = draft.model_dump(exclude={"provenance"})
    tau = {target: found.tau for target, found in frontier.found.items()}
    return SkipPolicy(**{**fields, "tau": tau}, provenance=provenance)
