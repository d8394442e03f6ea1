"""calibrate: from a model and samples to a policy, the method's constants with their provenance."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.attach import find_expert_modules, is_attached
from modes_fx.calibration.alpha import Alpha, AlphaOptions, measure_alpha, normalise_alpha
from modes_fx.calibration.cost import Cost, expected_passes
from modes_fx.calibration.data import (
    Batch,
    calibrated_modalities,
)
from modes_fx.calibration.encode import Chat
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.means import Sizes
from modes_fx.calibration.options import CalibrationOptions
from modes_fx.calibration.pairs import Chosen, Shares
from modes_fx.calibration.placement import require_experts_in_place
from modes_fx.calibration.plane import UnreachableTargetError
from modes_fx.calibration.prefix import find_stack
from modes_fx.calibration.progress import Stage, shown_progress
from modes_fx.calibration.reference import Reference
from modes_fx.calibration.removals import measure_updates
from modes_fx.calibration.session import Session, as_batches, open_session
from modes_fx.calibration.survey import Survey, joined_shares, number_of_experts
from modes_fx.calibration.tuning import Tuned, Tuner, with_constants
from modes_fx.calibration.updates import Update
from modes_fx.fingerprint import config_hash
from modes_fx.modality import TokenIds
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Provenance, Reached, target_key
from modes_fx.policy_means import Means
from modes_fx.vocabulary import CALIBRATED, Modality, ModalityName

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
        experts: which experts they are of.
        sizes: (E, H) of the experts of each layer.
        updates: what each layer's experts do to tokens, by modality; empty where unknown.
        cost: what it took, beside what the published procedures take.
        draft: the policy before anything was measured, which keeps all.
    """

    policy: SkipPolicy
    alpha: Alpha
    tuned: Tuned
    reference: Reference
    shares: Shares
    experts: Chosen
    sizes: Sizes
    updates: Mapping[str, Mapping[ModalityName, Update]]
    cost: Cost
    draft: SkipPolicy


def calibrate(
    model: PreTrainedModel,
    processor: Any,
    data: Sequence[Chat] | Sequence[Batch],
    targets: Iterable[float] = TARGETS,
    *,
    options: CalibrationOptions | None = None,
    progress: bool = True,
    folder: str | os.PathLike[str] | None = None,
) -> SkipPolicy:
    """Find the constants that skip given parts of the experts' work at the least change of answers.

    Args:
        model: a transformers model, not attached; as it was again afterwards.
        processor: its processor, or its tokenizer where it has no processor.
        data: samples: chats (message lists) that end with the assistant's answer, or batches.
        targets: skip ratios to find thresholds for.
        options: how; by default :class:`CalibrationOptions`.
        progress: whether to show a summary and progress bars on standard error.
        folder: where measurements are kept at once, so that the same call, made again after it was
            stopped, goes on from there.

    Returns:
        A policy for ``modes_fx.attach``, to be saved with ``policy.save_pretrained``.

    Raises:
        UnreachableTargetError: a target is higher than what can be skipped in the data.
        MatchError: an MoE layer of the model cannot be rewritten.
        JournalError: the folder is of another calibration (says in what it differs), or cannot be
            written.
        ValueError: the model has no MoE layer or is attached, or the data is of no use; says why.
    """
    return run_calibration(
        model, processor, data, targets, options=options, progress=progress, folder=folder
    ).policy


def run_calibration(
    model: PreTrainedModel,
    processor: Any,
    data: Sequence[Chat] | Sequence[Batch],
    targets: Iterable[float] = TARGETS,
    *,
    options: CalibrationOptions | None = None,
    progress: bool = True,
    folder: str | os.PathLike[str] | None = None,
) -> Calibration:
    """Do what :func:`calibrate` does and return also how the policy was found."""
    options = options or CalibrationOptions()
    ordered = _check_targets(targets)
    _check_model(model)
    batches = as_batches(processor, data, options.batch_size)
    draft = _draft_policy(model, processor, options)
    kept = None if folder is None else Path(folder)
    with open_session(model, batches, draft, folder=kept, compiler=options.compiler) as session:
        _check_reachable(ordered[-1], session.tokens)
        summary = _summary(session, options, len(ordered))
        show = progress and session.evaluator.processes.is_main
        with shown_progress(summary, show=show) as stage:
            return find_policy(session, ordered, options, stage)


def find_policy(
    session: Session,
    targets: Sequence[float],
    options: CalibrationOptions,
    stage: Stage,
) -> Calibration:
    """Do all that needs the model.

    Args:
        session: open; its evaluator's policy is the draft of the one to be found.
        targets: skip ratios, ascending.
        options: how.
        stage: shows progress.
    """
    evaluator, tokens = session.evaluator, session.tokens
    modalities = calibrated_modalities(tokens)
    every = math.ceil(sum(tokens.values()) / RECORDED_TOKENS)
    survey = Survey(evaluator, every, find_stack(evaluator.model, evaluator.layers))
    shares, experts, sizes = _first_pass(survey)
    alpha_options = AlphaOptions(options.alpha_mode, options.alpha_distance, options.alpha_returned)
    alpha = measure_alpha(survey, modalities, alpha_options, on_progress=stage("alpha"))
    groups = alpha_options.groups(modalities)
    updates = measure_updates(survey, groups, returned=options.alpha_returned)
    for_alpha = evaluator.ledger.layer_forwards
    draft = evaluator.policy.model_copy(update={"alpha": normalise_alpha(alpha)})
    tuner = Tuner(evaluator, draft, shares, sizes, modalities, options)
    tuned = tuner.tune(targets, stage("tau"))
    cost = Cost.of(evaluator, for_alpha, tuned, len(modalities), options)
    provenance = _provenance(session, tuned, options)
    policy = _policy(draft, tuned, provenance)
    return Calibration(
        policy=policy,
        alpha=alpha,
        tuned=tuned,
        reference=evaluator.reference,
        shares=shares,
        experts=experts,
        sizes=sizes,
        updates=updates,
        cost=cost,
        draft=evaluator.policy,
    )


def _first_pass(survey: Survey) -> tuple[Shares, Chosen, Sizes]:
    """Return the shares and experts of all chunks, and the experts' (E, H) by layer."""
    shares: list[Shares] = []
    chosen: list[Chosen] = []
    hidden: dict[str, int] = {}
    for chunk in survey.chunks:
        of_chunk, chosen_of_chunk, sizes = survey.found(chunk)
        shares.append(of_chunk)
        chosen.append(chosen_of_chunk)
        hidden |= sizes
    model = survey.evaluator.model
    experts = {path: number_of_experts(layer) for path, layer in find_expert_modules(model).items()}
    sizes_of = {path: (experts[path], h) for path, h in hidden.items()}
    return joined_shares(shares), joined_shares(chosen), sizes_of


def _check_targets(targets: Iterable[float]) -> list[float]:
    ordered = sorted(set(targets))
    if not ordered or not all(0 < target < 1 for target in ordered):
        raise ValueError(f"targets are skip ratios between 0 and 1, got {ordered}")
    return ordered


def _check_model(model: PreTrainedModel) -> None:
    if is_attached(model):
        raise ValueError("a policy is attached to the model: call modes_fx.detach(model) first")
    layers = find_expert_modules(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no MoE layer to calibrate: no module owns two or more "
            "stacked expert weights of shape [E, ., .]"
        )
    require_experts_in_place(model, layers)


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
    session: Session,
    options: CalibrationOptions,
    targets: int,
) -> str:
    tokens, reference = session.tokens, session.evaluator.reference
    layers = find_expert_modules(session.evaluator.model)
    experts = {number_of_experts(layer) for layer in layers.values()}
    shown = [m for m in Modality if m is not Modality.PADDING and tokens[m]]
    counted = ", ".join(f"{tokens[m]:,} {m.label}" for m in shown)
    modalities = sum(tokens[m] > 0 for m in CALIBRATED.values())
    groups = modalities if options.alpha_mode == "per_modality" else 1
    left = f"; {session.resumed} measurements of an earlier run are in the journal"
    resumed = left if session.resumed else ""
    return (
        f"Calibrating {len(layers)} MoE layers of {'/'.join(map(str, sorted(experts)))} experts on "
        f"{reference.samples} samples ({counted} tokens): 1 pass over "
        f"them with the full model, about {math.ceil(groups * (len(layers) + 1) / 2)} for alpha, "
        f"about {expected_passes(options, len(layers), modalities, targets)} for tau{resumed}"
    )


def _provenance(
    session: Session,
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
        samples=session.evaluator.reference.samples,
        tokens={name: session.tokens[modality] for name, modality in CALIBRATED.items()},
        seed=options.seed,
        versions={name: version(name) for name in ("modes-fx", "torch", "transformers")},
        created=session.created,
        reached={target_key(target): entry for target, entry in reached.items()},
    )


def _policy(draft: SkipPolicy, tuned: Tuned, provenance: Provenance) -> SkipPolicy:
    found = {target: chosen.means for target, chosen in tuned.chosen.items()}
    tables: dict[float | str, Mapping[str, Tensor]] = {
        target: means for target, means in found.items() if means is not None
    }
    fields = {
        **draft.model_dump(exclude={"provenance"}),
        **with_constants(draft, tuned),
        "means": Means(tables) if tables else None,
        "provenance": provenance,
    }
    return SkipPolicy(**fields)
