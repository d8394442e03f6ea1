"""Held-out questions: the full model, the policies, and simpler ways to skip as much."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx import SkipPolicy
from modes_fx.bench.demo.report import Result, Scores
from modes_fx.bench.demo_model import Question, question_messages
from modes_fx.calibration import (
    Evaluator,
    Measurement,
    RandomSkipping,
    ReducedTopK,
    Reference,
    Selection,
    encode_chats,
    measure_policy,
    measure_selection,
    recorded_shares,
)
from modes_fx.calibration.baselines import one_threshold, without_alpha
from modes_fx.evaluation.confidence import paired_difference, wilson_interval

OURS = "default policy"
MODES = "MoDES as published"
WITHOUT_ALPHA = "MoDES without alpha"
SINGLE_THRESHOLD = "single threshold"
TOP_K = "reduced top-k"
TOP_K_RENORMALISED = "reduced top-k, renormalised"
RANDOM = "random"
METHODS = (OURS, MODES, WITHOUT_ALPHA, SINGLE_THRESHOLD, TOP_K, TOP_K_RENORMALISED, RANDOM)

BATCH_SIZE = 60
SKIP_TOLERANCE = 0.002


@dataclass(frozen=True)
class Comparison:
    """What the methods gave.

    Attributes:
        full: the unmodified model.
        results: every method at every target.
    """

    full: Scores
    results: list[Result]


def compare_methods(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    policies: Mapping[str, SkipPolicy],
    questions: Sequence[Question],
    top_k: int,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Comparison:
    """Evaluate policies as calibrated, and other methods at the ratio that the default skips here.

    Args:
        model: the unmodified model; as it was again afterwards.
        processor: its processor.
        policies: calibrated for it, by method, all for the same targets.
        questions: held-out questions with their answers.
        top_k: how many experts the model gives each token.
        on_progress: called with the share that is done.
    """
    chats = [question_messages(question, with_answer=True) for question in questions]
    policy = policies[OURS]
    with recorded_shares(model, policy) as shares:
        reference = Reference.record(model, encode_chats(processor, chats, BATCH_SIZE))
    full = reference.compare(model).correct
    modalities = list(next(iter(policy.tau.values())))
    single = one_threshold(SINGLE_THRESHOLD, without_alpha(policy), shares, modalities)
    measured: dict[float, dict[str, Measurement]] = {}
    steps = 2 * len(policy.targets)
    with Evaluator(model, reference, policy) as evaluator:
        for target in policy.targets:
            methods = {
                name: measure_policy(evaluator, some, target) for name, some in policies.items()
            }
            skip_ratio = methods[OURS].skip_ratio
            methods[SINGLE_THRESHOLD] = single.at_ratio(evaluator, skip_ratio, SKIP_TOLERANCE)
            measured[target] = methods
            on_progress(len(measured) / steps)
        for number, methods in enumerate(measured.values(), start=1):
            skip_ratio = methods[OURS].skip_ratio
            k = top_k * (1 - skip_ratio)
            selections: dict[str, Selection] = {
                TOP_K: ReducedTopK(k),
                TOP_K_RENORMALISED: ReducedTopK(k, renormalise=True),
                RANDOM: RandomSkipping(skip_ratio),
            }
            for name, selection in selections.items():
                methods[name] = measure_selection(evaluator, selection)
            on_progress((len(measured) + number) / steps)
    return Comparison(
        full=score(questions, full),
        results=[
            _result(name, target, measurement, methods[OURS], questions)
            for target, methods in measured.items()
            for name, measurement in methods.items()
        ],
    )


def score(questions: Sequence[Question], correct: Tensor) -> Scores:
    """Return how many questions were answered right, overall and by group.

    Args:
        questions: N questions.
        correct: bool ``[N]``.
    """
    right: dict[str, list[bool]] = {}
    for question, hit in zip(questions, correct.tolist(), strict=True):
        for group in ("all", question.modality, question.kind):
            right.setdefault(group, []).append(hit)
    accuracy = {group: sum(hits) / len(hits) for group, hits in right.items()}
    overall, image, text = (accuracy.pop(group, 0.0) for group in ("all", "image", "text"))
    return Scores(
        questions=len(questions),
        accuracy=overall,
        accuracy_interval=wilson_interval(sum(right["all"]), len(questions)),
        accuracy_image=image,
        accuracy_text=text,
        accuracy_by_kind=accuracy,
    )


def _result(
    name: str,
    target: float,
    measurement: Measurement,
    ours: Measurement,
    questions: Sequence[Question],
) -> Result:
    correct = measurement.difference.correct
    result = Result(
        **score(questions, correct).model_dump(),
        method=name,
        target=target,
        skip_ratio=measurement.skip_ratio,
        skip_ratio_by_modality=measurement.skip_ratio_by_modality,
        skip_ratio_by_layer=measurement.skip_ratio_by_layer,
        kl=measurement.kl,
    )
    if name == OURS:
        return result
    ahead, interval = paired_difference(correct.numpy(), ours.difference.correct.numpy())
    return result.model_copy(
        update={"ahead_of_default": ahead, "ahead_of_default_interval": interval}
    )
