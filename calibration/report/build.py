"""From what a calibration found to its report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from modes_fx.calibration.bounded import Bounded
from modes_fx.calibration.calibrator import Calibration
from modes_fx.calibration.compare import Row
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.options import CalibrationOptions
from modes_fx.calibration.pairs import experts_hit
from modes_fx.calibration.report.schema import (
    Bounds,
    CalibrationReport,
    Choice,
    ComparedRow,
    Comparison,
    Data,
    Evaluated,
    Scores,
    Target,
    UpdateOfTokens,
)
from modes_fx.calibration.tuning import Chosen
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import ModalityName


@dataclass(frozen=True)
class Compared:
    """What a comparison measured.

    Attributes:
        samples: how many, none of them calibrated on.
        full: the model that skips nothing.
        rows: every method at every target.
    """

    samples: int
    full: Measurement
    rows: Sequence[Row]


def build_report(
    found: Calibration,
    options: CalibrationOptions,
    processes: int,
    peak_memory: Mapping[str, int],
    compared: Compared | None = None,
) -> CalibrationReport:
    """Describe a calibration.

    Args:
        found: what it found.
        options: how.
        processes: how many calibrated together.
        peak_memory: the most bytes that one of them held, by kind.
        compared: with other methods.
    """
    policy, reference = found.policy, found.reference
    provenance = policy.provenance
    held_back = sum(len(samples) for samples, kept in reference.layout if kept)
    first = next(iter(found.tuned.chosen.values())).measurement
    store = reference.store
    return CalibrationReport(
        created=provenance.created or "",
        model=policy.model_id,
        layers=len(policy.alpha),
        experts=sorted({experts for experts, _ in found.sizes.values()}),
        data=Data(
            name=provenance.data,
            samples=reference.samples,
            held_back=held_back,
            tokens={name: count for name, count in provenance.tokens.items() if count},
            answer_tokens=int(first.difference.tokens.sum()),
            seed=provenance.seed,
        ),
        options=asdict(options),
        alpha={path: dict(of_layer) for path, of_layer in found.alpha.items()},
        experts_hit=_experts_hit(found, {path: keep_all_theta() for path in found.experts}),
        updates={
            path: {name: UpdateOfTokens(**asdict(update)) for name, update in of_layer.items()}
            for path, of_layer in found.updates.items()
        },
        search=[
            Evaluated(
                tau=dict(tau),
                kl=measurement.kl,
                skip_ratio=measurement.skip_ratio,
                skip_ratio_by_modality=measurement.skip_ratio_by_modality,
            )
            for tau, measurement in found.tuned.frontier.evaluated
        ],
        choices=[
            Choice(name=step.name, options=dict(step.options), chosen=step.chosen)
            for step in found.tuned.steps
        ],
        targets=[_target(found, chosen) for chosen in found.tuned.chosen.values()],
        cost=asdict(found.cost),
        peak_memory=dict(peak_memory),
        reference_bytes={"memory": store.bytes_in_memory, "disk": store.bytes_on_disk},
        processes=processes,
        versions=provenance.versions,
        comparison=None if compared is None else _comparison(compared),
    )


def _target(found: Calibration, chosen: Chosen) -> Target:
    difference = chosen.measurement.difference
    held_back = {s for samples, kept in found.reference.layout if kept for s in samples}
    sums: dict[str, list[float]] = {"fit": [0.0, 0], "held back": [0.0, 0]}
    for sample, kl, tokens in zip(
        difference.samples, difference.kl_sums.tolist(), difference.tokens.tolist(), strict=True
    ):
        half = sums["held back" if sample in held_back else "fit"]
        half[0] += kl
        half[1] += tokens
    return Target(
        target=chosen.target,
        tau=dict(chosen.tau),
        refined=chosen.refined,
        scores=scores_of(chosen.measurement),
        kl_by_half={name: kl / tokens for name, (kl, tokens) in sums.items() if tokens},
        kl_before_extras=chosen.before.kl,
        skip_ratio_by_layer=chosen.measurement.skip_ratio_by_layer_and_modality,
        experts_hit=_experts_hit(found, chosen.thetas),
        bounds=_bounds(found.tuned.bounded.get(chosen.target)),
    )


def _bounds(bounded: Bounded | None) -> Bounds | None:
    if bounded is None:
        return None
    kl_fall, skip_ratio_fall = bounded.contradictions
    return Bounds(
        kl=bounded.kl,
        gap=bounded.gap,
        measured=bounded.measured,
        kl_fall=kl_fall,
        skip_ratio_fall=skip_ratio_fall,
    )


def _experts_hit(
    found: Calibration, thetas: Mapping[str, Tensor]
) -> dict[str, dict[ModalityName, int]]:
    return {
        path: experts_hit(found.experts[path], found.shares[path], thetas[path])
        for path in found.policy.alpha
    }


def _comparison(compared: Compared) -> Comparison:
    return Comparison(
        samples=compared.samples,
        accuracy=compared.full.accuracy,
        rows=[
            ComparedRow(
                method=row.method,
                target=row.target,
                scores=scores_of(row.measurement),
                kl_ratio=row.ratio,
                kl_ratio_interval=row.interval,
                reached=row.reached,
                note=row.note,
            )
            for row in compared.rows
        ],
    )


def scores_of(measurement: Measurement) -> Scores:
    """Return what a report says of a measurement."""
    return Scores(
        kl=measurement.kl,
        agreement=measurement.agreement,
        accuracy=measurement.accuracy,
        skip_ratio=measurement.skip_ratio,
        skip_ratio_by_modality=measurement.skip_ratio_by_modality,
    )
