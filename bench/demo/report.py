"""The schema of ``report.json``, the source of every other form of the demo's report.

Ratios, accuracies and shares are between 0 and 1, times are in seconds, KL in nats. An interval is
(lower, upper) at 95 % confidence.
"""

from typing import Annotated

from pydantic import Field

from modes_fx.bench.environment import Environment, Section
from modes_fx.bench.timing import Timing
from modes_fx.passes.report import LayerReport
from modes_fx.vocabulary import ModalityName

SCHEMA_VERSION = 1

Ratio = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[float, float]
ByModality = dict[ModalityName, float]


class Tau0Check(Section):
    """How far the compiled model is from the unmodified one when nothing is skipped.

    Attributes:
        errors: by kind of input, the largest absolute difference of a logit of a token that is not
            padding, as a fraction of the largest logit.
        tolerance: the largest error allowed.
        generated_tokens: how many tokens were generated greedily, over all rows.
        tokens_equal: whether both models generated the same ones.
    """

    errors: dict[str, float]
    tolerance: float
    generated_tokens: int
    tokens_equal: bool


class Measured(Section):
    """What a choice of tau gave on the calibration samples.

    Attributes:
        tau: by modality.
        kl: mean over answer tokens.
        skip_ratio: reached.
        skip_ratio_by_modality: likewise.
    """

    tau: ByModality
    kl: float
    skip_ratio: Ratio
    skip_ratio_by_modality: ByModality


class CalibrationSection(Section):
    """The default policy and how it was found.

    Attributes:
        policy: the folder it was saved to.
        samples: how many.
        tokens: of each modality.
        special_tokens: whether special tokens keep all experts or count as text.
        special_token_share: how many of the tokens are special.
        alpha: by layer and modality, summing to 1 over the layers.
        targets: the choice for each target.
        searched: every choice that the search measured.
        alpha_exponent: chosen; 1 is as published, 0 does without alpha.
        kept_mass_exponent: of the partial renormalisation of kept weights, chosen; 0 for none.
        mean_strength: how much of the mean outputs of skipped experts is added, chosen; one number
            or by modality.
        passes: how often the samples went through the model.
        sweep_passes: the least and the most that the published search takes for tau alone.
    """

    policy: str
    samples: int
    tokens: dict[str, int]
    special_tokens: str
    special_token_share: Ratio
    alpha: dict[str, ByModality]
    targets: dict[float, Measured]
    searched: list[Measured]
    alpha_exponent: float
    kept_mass_exponent: float
    mean_strength: float | ByModality
    passes: float
    sweep_passes: tuple[int, int]


class Scores(Section):
    """Teacher-forced exact match on held-out questions: every token of an answer is the likeliest.

    Attributes:
        questions: how many.
        accuracy: of all questions.
        accuracy_interval: Wilson's.
        accuracy_image: of questions about images.
        accuracy_text: of questions about text alone.
        accuracy_by_kind: by kind of question.
    """

    questions: int
    accuracy: Ratio
    accuracy_interval: Interval
    accuracy_image: Ratio
    accuracy_text: Ratio
    accuracy_by_kind: dict[str, Ratio]


class Result(Scores):
    """One method of skipping at one target.

    Attributes:
        method: its name.
        target: the skip ratio that the policy was calibrated for.
        skip_ratio: reached on the held-out questions. Methods that are not calibrated are set to
            what the default policy reaches there.
        skip_ratio_by_modality: likewise.
        skip_ratio_by_layer: likewise, by path.
        kl: from the full model, mean over answer tokens.
        ahead_of_default: this method's accuracy minus the default policy's at the target; None for
            the default itself.
        ahead_of_default_interval: of that difference, by bootstrap over the questions.
    """

    method: str
    target: Ratio
    skip_ratio: Ratio
    skip_ratio_by_modality: ByModality
    skip_ratio_by_layer: dict[str, float]
    kl: float
    ahead_of_default: float | None = None
    ahead_of_default_interval: Interval | None = None


class TimedCase(Section):
    """One way to run the model.

    Attributes:
        name: of the way.
        compile_seconds: what the first call took; None where nothing is compiled.
        target: the policy's target; None where nothing is skipped.
        ours: whether it runs through modes_backend.
        prefill: time to the first token of the whole batch.
        decode: time of a later token of the whole batch.
        decode_tokens_per_second: over the batch, at the median.
    """

    name: str
    compile_seconds: float | None
    target: float | None
    ours: bool
    prefill: Timing
    decode: Timing
    decode_tokens_per_second: float


class TimingSection(Section):
    """How long ``generate`` takes on a batch of questions about images.

    Attributes:
        batch: questions in the batch.
        prompt_tokens: tokens of each prompt.
        new_tokens: tokens generated for each question.
        rounds: how often each case ran, taking turns.
        prefill_baseline: the fastest Hugging Face case; speed-ups are relative to it.
        decode_baseline: likewise.
        tokens_equal: whether the model compiled with inductor generates, at tau 0, the tokens that
            the unmodified model generates.
        cases: in the order in which they were run.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    prefill_baseline: str
    decode_baseline: str
    tokens_equal: bool
    cases: list[TimedCase]


class DemoReport(Section):
    """What ``modes-fx demo`` found.

    Attributes:
        schema_version: of this file format.
        created: when, in ISO 8601.
        quick: whether it was a quick run, on fewer samples.
        environment: where and with what.
        parameters: of the model.
        moe_layers: how many the model has.
        matched: how many of them were rewritten.
        layers: what became of each.
        graphs: how many graphs were captured in the call that was explained.
        graph_breaks: why there is more than one.
        tau0_max_error: the largest of ``tau0.errors``.
        tau0: the check that nothing changes when nothing is skipped.
        calibration: of the policy.
        full: the unmodified model's scores.
        results: every method at every target.
        timing: of the compiled model and its peers.
        seconds: of each step.
        failures: what makes the demo fail, in words; empty where all is well.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    quick: bool
    environment: Environment
    parameters: int
    moe_layers: int
    matched: int
    layers: list[LayerReport]
    graphs: int
    graph_breaks: list[str]
    tau0_max_error: float
    tau0: Tau0Check
    calibration: CalibrationSection
    full: Scores
    results: list[Result]
    timing: TimingSection
    seconds: dict[str, float]
    failures: list[str]

    @property
    def targets(self) -> list[float]:
        """The policy's targets, ascending."""
        return sorted(self.calibration.targets)

    def result(self, method: str, target: float) -> Result:
        """Return what a method gave at a target.

        Raises:
            KeyError: there is no such result.
        """
        for result in self.results:
            if result.method == method and result.target == target:
                return result
        raise KeyError(f"no result of {method!r} at target {target}")
