"""The demo's policies: calibrated on questions about training digits, saved, and described."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx import SkipPolicy
from modes_fx.bench.demo.report import CalibrationSection, Measured
from modes_fx.bench.demo_model import Question, question_messages
from modes_fx.calibration import CalibrationOptions, Measurement, Reference, run_calibration
from modes_fx.calibration.options import Method
from modes_fx.vocabulary import ModalityName

TARGETS = (0.5, 0.75, 0.88)
OPTIONS = CalibrationOptions(
    # Demo prompts are so short that special tokens, if they kept all experts, would cap the skip
    # ratio below the highest target.
    special_tokens="text",
    batch_size=30,
    data_name="the demo model's calibration questions",
    seed=0,
)


def calibrate_demo(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    folder: Path,
    *,
    method: Method = "default",
    alpha_exponent: float | None = None,
) -> tuple[SkipPolicy, CalibrationSection]:
    """Calibrate a policy and save it; shows its own progress.

    Args:
        model: the unmodified model.
        processor: its processor.
        questions: with their answers, to calibrate on.
        folder: where the policy is saved.
        method: see ``CalibrationOptions``, likewise the exponent.
        alpha_exponent: see there.

    Returns:
        The policy, and what the report says about it.
    """
    chats = [question_messages(question, with_answer=True) for question in questions]
    options = replace(OPTIONS, method=method, alpha_exponent=alpha_exponent)
    calibration = run_calibration(model, processor, chats, TARGETS, options=options)
    policy, tuned = calibration.policy, calibration.tuned
    policy.save_pretrained(folder)
    section = CalibrationSection(
        policy=str(folder),
        samples=calibration.reference.samples,
        tokens={name: count for name, count in policy.provenance.tokens.items() if count},
        special_tokens=policy.special_tokens,
        special_token_share=_special_token_share(calibration.reference, processor),
        alpha=policy.alpha,
        targets={
            target: _measured(chosen.tau, chosen.measurement)
            for target, chosen in tuned.chosen.items()
        },
        searched=[_measured(tau, measurement) for tau, measurement in tuned.frontier.evaluated],
        alpha_exponent=tuned.alpha_exponent,
        kept_mass_exponent=tuned.kept_mass_exponent,
        mean_strength=tuned.mean_strength,
        passes=calibration.cost.passes,
        sweep_passes=calibration.cost.sweep_passes,
    )
    return policy, section


def _measured(tau: Mapping[ModalityName, float], measurement: Measurement) -> Measured:
    return Measured(
        tau=dict(tau),
        kl=measurement.kl,
        skip_ratio=measurement.skip_ratio,
        skip_ratio_by_modality=measurement.skip_ratio_by_modality,
    )


def _special_token_share(reference: Reference, processor: ProcessorMixin) -> float:
    """The share of special tokens, image placeholders left out, among all but padding."""
    special = set(processor.tokenizer.all_special_ids) - {processor.image_token_id}
    tokens = [
        batch.inputs["input_ids"][batch.inputs["attention_mask"].bool()]
        for batch in reference.batches
    ]
    is_special = torch.isin(torch.cat(tokens), torch.tensor(sorted(special)))
    return float(is_special.double().mean())
