"""The choices of a calibration: made by both halves, and in the policy as they were measured."""

import pytest

from modes_fx import SkipPolicy
from modes_fx.calibration import CalibrationOptions, measure_policy
from modes_fx.calibration.alpha import measure_alpha, normalise_alpha
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.plane import thetas_of
from modes_fx.calibration.prefix import find_stack
from modes_fx.calibration.survey import Survey
from modes_fx.calibration.tuning import Tuner, gain_over, unbeaten, with_constants
from modes_fx.policy_means import Means

MODALITIES = ["text", "vision"]
SIZES = (8, 32)


@pytest.fixture
def tuner(model, shares, evaluator):
    survey = Survey(evaluator, 1, find_stack(model, evaluator.layers))
    alpha = normalise_alpha(measure_alpha(survey, MODALITIES))
    draft = keep_all_policy(model).model_copy(update={"alpha": alpha})
    sizes = dict.fromkeys(evaluator.layers, SIZES)

    def of(**options) -> Tuner:
        chosen = CalibrationOptions(**options)
        return Tuner(evaluator, draft, shares, sizes, MODALITIES, chosen)

    return of


def policy_of(tuner: Tuner, tuned) -> SkipPolicy:
    means = {t: c.means for t, c in tuned.chosen.items() if c.means is not None}
    fields = {**tuner.draft.model_dump(), **with_constants(tuner.draft, tuned)}
    return SkipPolicy(**{**fields, "means": Means(means) if means else None})


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="chosen"),
        pytest.param(
            {"alpha_exponent": 0.5, "kept_mass_exponent": 0.25, "mean_strength": 0.5}, id="given"
        ),
        pytest.param({"mean_strength": (0.5, 1.0)}, id="by modality"),
        pytest.param({"refine_rounds": 1, "mean_strength": 0.5}, id="refined"),
        pytest.param({"method": "modes"}, id="published"),
    ],
)
def test_the_policy_does_what_was_measured(tuner, evaluator, options) -> None:
    calibrating = tuner(**options)
    tuned = calibrating.tune([0.5])
    policy = policy_of(calibrating, tuned)
    chosen = tuned.chosen[0.5]
    again = measure_policy(evaluator, policy, 0.5)
    assert again.kl == pytest.approx(chosen.measurement.kl, rel=1e-6)
    assert again.skip_ratio == chosen.measurement.skip_ratio
    assert 0.5 <= again.skip_ratio <= 0.53
    assert (policy.layer_tau is not None) == ("refine_rounds" in options)


def test_what_is_given_is_not_chosen(tuner) -> None:
    tuned = tuner(alpha_exponent=0.5, kept_mass_exponent=0.25, mean_strength=0.5).tune([0.5])
    assert (tuned.alpha_exponent, tuned.kept_mass_exponent, tuned.mean_strength) == (0.5, 0.25, 0.5)
    assert tuned.steps == []


def test_what_was_refused_is_reported_with_its_gain(tuner) -> None:
    exponent, extras = tuner().tune([0.5]).steps
    assert exponent.options["0"] == 0
    assert exponent.chosen in exponent.options
    assert extras.options["renormalisation 0, means 0"] == 0
    assert extras.options["renormalisation 0.25, means text 0.5, vision 1"] < 1
    assert len(extras.options) == 8


def test_what_was_chosen_so_far_has_to_be_beaten_not_only_the_first() -> None:
    gains = {("none", "likely"): 0.30, ("likely", "lucky"): 0.01, ("likely", "better"): 0.05}
    gains["none", "lucky"] = 0.60

    def gain(before: str, after: str) -> float:
        return gains.get((before, after), 0.0)

    assert unbeaten(["none", "likely", "lucky"], gain) == "likely"
    assert unbeaten(["none", "likely", "lucky", "better"], gain) == "better"
    assert unbeaten(["none", "other"], gain) == "none"


def test_a_gain_at_one_target_does_not_hide_a_harm_at_another() -> None:
    assert gain_over([0.4, 1.0]) == pytest.approx(0.7)
    assert gain_over([-0.01, 1.0]) > 0, "that is noise"
    assert gain_over([-0.1, 1.0]) == pytest.approx(-0.1)


@pytest.mark.parametrize("search", ["bounded", "sweep", "brute_force"])
def test_grids_find_what_the_places_find_or_better(tuner, search) -> None:
    published = {"method": "modes", "size": 7, "tolerance": 0.02}
    tuned = tuner(search=search, **published).tune([0.5])
    places = tuner(**published).tune([0.5])
    found, other = (t.chosen[0.5].measurement for t in (tuned, places))
    assert 0.5 <= found.skip_ratio <= 0.55
    assert found.kl <= 2 * other.kl
    assert (0.5 in tuned.bounded) == (search == "bounded")


def test_targets_that_were_found_keep_their_thresholds(tuner) -> None:
    calibrating = tuner(method="modes")
    tuned = calibrating.tune([0.4, 0.7])
    for chosen in tuned.chosen.values():
        policy = calibrating.draft.model_copy(update={"alpha_exponent": 1.0})
        for path, theta in thetas_of(policy, chosen.tau).items():
            assert theta.tolist() == chosen.thetas[path].tolist()
