"""The comparison table: a policy and what else skips as much, on samples that chose nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modes_fx.calibration.baselines import Baseline
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.plane import Extras, Progress, no_progress, request_of
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import ModalityName

OURS = "this policy"
MATCHED = 0.002
"""By how much the skip ratios of the methods compared may differ."""

RESAMPLES = 4000


@dataclass(frozen=True)
class Row:
    """One method at one target.

    Attributes:
        method: its name.
        target: what the policy was calibrated for.
        measurement: what it gave.
        ratio: the policy's KL over this method's; below 1 the policy is better.
        interval: of that ratio, at 95 %, by a paired bootstrap over the samples.
        reached: whether it skips as much as the policy does.
        note: in what it differs from what was published.
    """

    method: str
    target: float
    measurement: Measurement
    ratio: float
    interval: tuple[float, float]
    reached: bool
    note: str = ""

    @property
    def skip_ratio_by_modality(self) -> dict[ModalityName, float]:
        """What it skips of each modality."""
        return self.measurement.skip_ratio_by_modality


def compare(
    evaluator: Evaluator,
    policy: SkipPolicy,
    others: Mapping[float, Sequence[Baseline]],
    on_progress: Progress = no_progress,
) -> list[Row]:
    """Measure a policy, and other methods at the skip ratio that it reaches on these samples.

    Args:
        evaluator: of samples that were not calibrated on.
        policy: calibrated for the same model.
        others: for each of its targets.
        on_progress: called with the share that is done.
    """
    ours = {target: measure_policy(evaluator, policy, target) for target in policy.targets}
    measured: dict[tuple[float, str], tuple[Baseline, Measurement]] = {}
    # Those that run in the unmodified model come last: attaching means to compile again.
    ordered = sorted(
        ((target, other) for target, of_target in others.items() for other in of_target),
        key=lambda pair: pair[1].unmodified,
    )
    for number, (target, other) in enumerate(ordered, start=1):
        found = other.at_ratio(evaluator, ours[target].skip_ratio, MATCHED)
        measured[target, other.name] = other, found
        on_progress(number / len(ordered))
    rows = []
    for target, of_target in others.items():
        rows.append(_row(OURS, target, ours[target], ours[target]))
        rows += [
            _row(name, target, ours[target], measurement, other.note)
            for name in (other.name for other in of_target)
            for other, measurement in (measured[target, name],)
        ]
    return rows


def measure_policy(evaluator: Evaluator, policy: SkipPolicy, target: float) -> Measurement:
    """Measure what a policy does at one of its targets, its means included."""
    extras = Extras(policy.kept_mass_exponent)
    if policy.adds_means and policy.means is not None and (means := policy.means.at(target)):
        digest = evaluator.add_means(means)
        extras = Extras(policy.kept_mass_exponent, policy.mean_strength, digest)
    thetas = {path: policy.theta(path, target) for path in policy.alpha}
    return evaluator.measure(request_of(thetas, extras))


def paired_ratio(
    ours: Measurement, other: Measurement, *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the KL of one over that of another on the same samples, and its interval at 95 %.

    Samples are drawn anew with replacement, the same ones for both. KL is heavy-tailed: a few
    samples hold most of it, and the interval shows how much hangs on them.
    """
    a, b = (m.difference.kl_sums.clamp(min=0).numpy() for m in (ours, other))
    drawn = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    ratios = a[drawn].sum(1) / np.maximum(b[drawn].sum(1), 1e-300)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(a.sum() / max(b.sum(), 1e-300)), (float(low), float(high))


def _row(
    name: str, target: float, ours: Measurement, measurement: Measurement, note: str = ""
) -> Row:
    ratio, interval = paired_ratio(ours, measurement)
    short = ours.skip_ratio - measurement.skip_ratio
    return Row(name, target, measurement, ratio, interval, short <= 2 * MATCHED, note)
