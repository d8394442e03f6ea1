"""The schema of a calibration's ``report.json``, the source of every other form of the report.

Ratios and shares are between 0 and 1, KL is in nats, memory in bytes. An interval is (lower, upper)
at 95 % confidence.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from modes_fx.vocabulary import ModalityName

SCHEMA_VERSION = 1

Ratio = Annotated[float, Field(ge=0, le=1)]
ByModality = dict[ModalityName, float]


class Section(BaseModel):
    """A part of the report: fields are fixed, unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """What was calibrated on.

    Attributes:
        name: of the data.
        samples: how many.
        held_back: how many of them only checked what the others chose.
        tokens: of each modality, padding left out.
        answer_tokens: those whose predictions were compared.
        seed: of the draw.
    """

    name: str | None
    samples: int
    held_back: int
    tokens: dict[str, int]
    answer_tokens: int
    seed: int | None


class Scores(Section):
    """What a choice of what to skip gave on some samples.

    Attributes:
        kl: KL(full || skipped), mean over answer tokens.
        agreement: how often both hold the same token likeliest.
        accuracy: the samples whose answer tokens are all the likeliest.
        skip_ratio: reached.
        skip_ratio_by_modality: likewise.
    """

    kl: float
    agreement: Ratio
    accuracy: Ratio
    skip_ratio: Ratio
    skip_ratio_by_modality: ByModality


class Bounds(Section):
    """What a search by bounds says of the cell of its grid that it found for a target.

    Attributes:
        kl: there, before the target was hit exactly.
        gap: by how much the grid's optimum may be lower, as a part of it; 0: it is the optimum.
        measured: how many cells were measured for this target, beyond those for lower ones.
        kl_fall: by how much at most KL fell where thresholds grew, as a part of it, among cells of
            half to twice this KL: the gap is as wrong as that.
        skip_ratio_fall: by how much the skip ratio did.
    """

    kl: float
    gap: Ratio
    measured: int
    kl_fall: Ratio
    skip_ratio_fall: Ratio


class Target(Section):
    """What was found for one target.

    Attributes:
        target: asked for.
        tau: by modality.
        refined: whether single layers have thresholds of their own.
        scores: on all samples.
        kl_by_half: on those that chose, and on those held back.
        kl_before_extras: with the thresholds alone.
        skip_ratio_by_layer: by path and modality.
        experts_hit: how many experts have a pair left on the tokens whose shares were recorded, by
            layer path and modality.
        bounds: what the search by bounds says of the thresholds; None for other searches.
    """

    target: float
    tau: ByModality
    refined: bool
    scores: Scores
    kl_by_half: dict[str, float]
    kl_before_extras: float
    skip_ratio_by_layer: dict[str, ByModality]
    experts_hit: dict[str, dict[ModalityName, int]]
    bounds: Bounds | None = None


class Evaluated(Section):
    """One pair of thresholds that the search tried.

    Attributes:
        tau: by modality.
        kl: KL(full || skipped), mean over answer tokens.
        skip_ratio: reached.
        skip_ratio_by_modality: likewise.
    """

    tau: ByModality
    kl: float
    skip_ratio: Ratio
    skip_ratio_by_modality: ByModality


class UpdateOfTokens(Section):
    """What a layer's routed experts do to a token, mean over the tokens of a modality.

    Attributes:
        magnitude: the length of the update over the token's length without it.
        angle: between the token with and without it, in degrees.
        tokens: how many.
    """

    magnitude: float
    angle: float
    tokens: int


class Choice(Section):
    """One choice that was made, by how much log KL fell on the half where it fell less.

    Attributes:
        name: what was chosen.
        options: the fall of each option.
        chosen: one of them.
    """

    name: str
    options: dict[str, float]
    chosen: str


class ComparedRow(Section):
    """One method at one target, on samples that chose nothing.

    Attributes:
        method: its name.
        target: what the policy was calibrated for.
        scores: what it gave.
        kl_ratio: the policy's KL over this method's; below 1 the policy is better.
        kl_ratio_interval: by a paired bootstrap over the samples.
        reached: whether it skips as much as the policy.
        note: in what it differs from what was published.
    """

    method: str
    target: float
    scores: Scores
    kl_ratio: float
    kl_ratio_interval: tuple[float, float]
    reached: bool
    note: str


class Comparison(Section):
    """Methods compared on samples that chose nothing.

    Attributes:
        samples: how many.
        accuracy: of the full model.
        rows: every method at every target.
    """

    samples: int
    accuracy: Ratio
    rows: list[ComparedRow]


class CalibrationReport(Section):
    """What ``modes-fx calibrate`` found.

    Attributes:
        schema_version: of this file format.
        created: when the calibration began, in ISO 8601.
        model: its id.
        layers: how many MoE layers it has.
        experts: how many experts its layers have.
        data: what was calibrated on.
        options: how, by name.
        alpha: by layer path and modality, as measured.
        experts_hit: by layer path and modality, where nothing is skipped.
        updates: by layer path and modality; empty where layers' outputs could not be compared.
        search: every pair of thresholds that the search tried, in order, without extras.
        choices: in order.
        targets: ascending.
        cost: what it took, beside what the published procedures take; see ``Cost``.
        peak_memory: of the host and the accelerator, in the process of most.
        reference_bytes: of the full model's predictions, in memory and on disk.
        processes: how many calibrated together.
        versions: library name to version.
        comparison: with other methods, where it was asked for.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    model: str | None
    layers: int
    experts: list[int]
    data: Data
    options: dict[str, Any]
    alpha: dict[str, ByModality]
    experts_hit: dict[str, dict[ModalityName, int]]
    updates: dict[str, dict[ModalityName, UpdateOfTokens]]
    search: list[Evaluated]
    choices: list[Choice]
    targets: list[Target]
    cost: dict[str, Any]
    peak_memory: dict[str, int]
    reference_bytes: dict[str, int]
    processes: int
    versions: dict[str, str]
    comparison: Comparison | None = None
