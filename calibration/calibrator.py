"""calibrate: from a model and samples to a policy, the method's constants with their provenance."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from modes_fx.attach import find_expert_modules, is_attached
from modes_fx.calibration.alpha import Alpha, AlphaOptions, measure_alpha, normalise_alpha
from modes_fx.calibration.cost import Cost, expected_passes
from modes_fx.calibration.data import (
    Batch,
    calibrated_modalities,
    count_tokens,
    token_codes,
)
from modes_fx.calibration.encode import Chat, encode_chats
from modes_fx.calibration.evaluator import Evaluator, keep_all_policy
from modes_fx.calibration.means import Sizes
from modes_fx.calibration.options import CalibrationOptions
from modes_fx.calibration.pairs import Shares
from modes_fx.calibration.plane import UnreachableTargetError
from modes_fx.calibration.prefix import find_stack
from modes_fx.calibration.progress import Stage, shown_progress
from modes_fx.calibration.reference import Reference
from modes_fx.calibration.survey import Survey, joined_shares, number_of_experts
from modes_fx.calibration.tuning import Tuned, Tuner, with_constants
from modes_fx.fingerprint import config_hash
from modes_fx.modality import TokenIds
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Provenance, Reached, target_key
from modes_fx.policy_means import Means
from modes_fx.vocabulary import CALIBRATED, Modality

TARGETS = (0.5, 0.75, 0.88)
RECORDED_TOKENS = 1 << 16
"""The most tokens whose shares are recorded in each layer: enough for any quantile of use."""


@dataclass(frozen=True)
class Calibration:
    """A policy and how it was found.

    Attributes:
        policy: the result.
        alpha: as measured, in nats or squared logits; the policy's are normalised.
        tuned: the search for tau and the choices after it.
        reference: the samples, and what the full model says to them.
        shares: the full model's routing shares on some of their tokens.
        sizes: (E, H) of the experts of each layer.
        cost: what it took, beside what the published procedures take.
    """

    policy: SkipPolicy
    alpha: Alpha
    tuned: Tuned
    reference: Reference
    shares: Shares
    sizes: Sizes
    cost: Cost


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
    _check_reachable(ordered[-1], tokens)
    summary = _summary(model, batches, tokens, options, len(ordered))
    with (
        shown_progress(summary, show=progress) as stage,
        Evaluator(model, Reference(batches), draft, compiler=options.compiler) as evaluator,
    ):
        return find_policy(evaluator, tokens, ordered, options, stage)


def find_policy(
    evaluator: Evaluator,
    tokens: Mapping[Modality, int],
    targets: Sequence[float],
    options: CalibrationOptions,
    stage: Stage,
) -> Calibration:
    """Do all that needs the model.

    Args:
        evaluator: inside its ``with`` block; its policy is the draft of the one to be found.
        tokens: how many of each code the samples hold.
        targets: skip ratios, ascending.
        options: how.
        stage: shows progress.
    """
    modalities = calibrated_modalities(tokens)
    every = math.ceil(sum(tokens.values()) / RECORDED_TOKENS)
    survey = Survey(evaluator, every, find_stack(evaluator.model, evaluator.layers))
    shares, sizes = _first_pass(survey)
    alpha_options = AlphaOptions(
        options.alpha_mode, options.alpha_distance, options.alpha_returned
    )
    alpha = measure_alpha(survey, modalities, alpha_options, on_progress=stage("alpha"))
    for_alpha = evaluator.ledger.layer_forwards
    draft = evaluator.policy.model_copy(update={"alpha": normalise_alpha(alpha)})
    tuner = Tuner(evaluator, draft, shares, sizes, modalities, options)
    tuned = tuner.tune(targets, stage("tau"))
    cost = Cost.of(evaluator, for_alpha, tuned, len(modalities), options)
    provenance = _provenance(evaluator.reference, tokens, tuned, options)
    policy = _policy(draft, tuned, provenance)
    return Calibration(policy, alpha, tuned, evaluator.reference, shares, sizes, cost)


def _first_pass(survey: Survey) -> tuple[Shares, Sizes]:
    """Return the shares of all chunks, and the experts' (E, H) by layer."""
    parts, hidden = [], {}
    for chunk in survey.chunks:
        shares, sizes = survey.shares(chunk)
        parts.append(shares)
        hidden |= sizes
    model = survey.evaluator.model
    experts = {path: number_of_experts(layer) for path, layer in find_expert_modules(model).items()}
    return joined_shares(parts), {path: (experts[path], h) for path, h in hidden.items()}


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
    experts = {number_of_experts(layer) for layer in layers.values()}
    shown = [m for m in Modality if m is not Modality.PADDING and tokens[m]]
    counted = ", ".join(f"{tokens[m]:,} {m.label}" for m in shown)
    modalities = sum(tokens[m] > 0 for m in CALIBRATED.values())
    groups = modalities if options.alpha_mode == "per_modality" else 1
    return (
        f"Calibrating {len(layers)} MoE layers of {'/'.join(map(str, sorted(experts)))} experts on "
        f"{sum(len(batch.samples) for batch in batches)} samples ({counted} tokens): 1 pass over "
        f"them with the full model, about {math.ceil(groups * (len(layers) + 1) / 2)} for alpha, "
        f"about {expected_passes(options, len(layers), modalities, targets)} for tau"
    )


def _provenance(
    reference: Reference,
    tokens: Mapping[Modality, int],
    tuned: Tuned,
    options: CalibrationOptions,
) -> Provenance:
    reached = {
        target: Reached(
            kl=chosen.measurement.kl,
            skip_ratio=chosen.measurement.skip_ratio,
            skip_ratio_by_modality=chosen.measurement.skip_ratio_by_modality,
        )
        for target, chosen in tuned.chosen.items()
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


def _policy(draft: SkipPolicy, tuned: Tuned, provenance: Provenance) -> SkipPolicy:
    found = {target: chosen.means for target, chosen in tuned.chosen.items()}
    tables = {target: means for target, means in found.items() if means is not None}
    fields = {
        **draft.model_dump(exclude={"provenance"}),
        **with_constants(draft, tuned),
        "means": Means(tables) if tables else None,
        "provenance": provenance,
    }
    return SkipPolicy(**fields)
