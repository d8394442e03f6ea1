"""calibrate, from a model and samples to a policy in use."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import modes_fx
from modes_fx import SkipPolicy, modes_backend, pair_counts
from modes_fx.bench.demo_model import load_model
from modes_fx.bench.demo_model.chat import question_messages
from modes_fx.bench.demo_model.questions import calibration_questions
from modes_fx.calibration import (
    CalibrationOptions,
    Evaluator,
    RandomSkipping,
    UnreachableTargetError,
    calibrate,
    measure_policy,
    measure_selection,
    run_calibration,
)
from modes_fx.fingerprint import config_hash
from modes_fx.vocabulary import Modality

pytestmark = pytest.mark.filterwarnings("ignore:the calibration data has only")

QUICK = CalibrationOptions(method="modes")
NOTHING_SPECIAL = SimpleNamespace(all_special_ids=[])


@pytest.fixture(scope="module")
def calibration(model, batches):
    options = CalibrationOptions(data_name="random chats", seed=7)
    return run_calibration(
        model, NOTHING_SPECIAL, batches, [0.75, 0.5], options=options, progress=False
    )


def test_the_policy_says_what_it_was_made_from(model, calibration) -> None:
    policy = calibration.policy
    assert policy.targets == [0.5, 0.75]
    assert policy.config_hash == config_hash(model.config)
    assert policy.provenance.data == "random chats"
    assert policy.provenance.samples == 12
    assert policy.provenance.tokens == {"text": 186, "vision": 48, "audio": 0}
    assert policy.provenance.seed == 7
    assert set(policy.provenance.versions) == {"modes-fx", "torch", "transformers"}
    for name in ("text", "vision"):
        assert sum(alpha[name] for alpha in policy.alpha.values()) == pytest.approx(1)


def test_the_published_method_is_one_option_away(model, batches) -> None:
    found = run_calibration(model, NOTHING_SPECIAL, batches, [0.5], options=QUICK, progress=False)
    policy = found.policy
    assert (policy.alpha_exponent, policy.kept_mass_exponent, policy.mean_strength) == (1, 0, 0)
    assert policy.means is None
    assert found.tuned.steps == []


def test_what_it_took_is_counted_beside_what_the_published_procedures_take(calibration) -> None:
    cost = calibration.cost
    assert cost.alpha_layer_forwards == 2 * 4
    assert cost.alpha_plain_layer_forwards == 2 * 5
    assert cost.sweep_passes == (200, 398)
    assert cost.brute_force_passes == 10_000
    assert 0 < cost.tau_passes < cost.passes < cost.sweep_passes[0]


def test_the_policy_survives_being_saved(calibration, tmp_path) -> None:
    calibration.policy.save_pretrained(tmp_path)
    assert SkipPolicy.from_pretrained(tmp_path) == calibration.policy


def test_calibrating_again_gives_the_same(model, batches, calibration) -> None:
    options = CalibrationOptions(data_name="random chats", seed=7)
    again = calibrate(model, NOTHING_SPECIAL, batches, [0.5, 0.75], options=options, progress=False)
    assert again.alpha == calibration.policy.alpha
    assert again.means == calibration.policy.means
    assert again.tau == calibration.policy.tau


def test_one_alpha_may_be_shared_by_the_modalities(model, batches) -> None:
    options = CalibrationOptions(method="modes", alpha_mode="shared", alpha_exponent=0.5)
    policy = calibrate(model, NOTHING_SPECIAL, batches, [0.5], options=options, progress=False)
    assert policy.alpha_mode == "shared"
    assert policy.alpha_exponent == 0.5
    assert all(alpha["text"] == alpha["vision"] for alpha in policy.alpha.values())


@pytest.fixture(scope="module")
def text_only(model, batches):
    samples = [replace(batches[0], samples=range(6))]
    with pytest.warns(UserWarning, match="no vision token"):
        policy = calibrate(
            model, NOTHING_SPECIAL, samples, [0.5, 0.75], options=QUICK, progress=False
        )
    return policy, samples[0]


def test_a_modality_without_tokens_never_skips(text_only) -> None:
    policy, _ = text_only
    assert all(set(alpha) == {"text"} for alpha in policy.alpha.values())
    assert policy.tau["0.5"].keys() == {"text"}
    theta = policy.theta(next(iter(policy.alpha)), 0.5)
    assert theta[Modality.VISION] == -torch.inf


def test_the_policy_skips_in_a_compiled_model_what_was_measured(model, text_only) -> None:
    policy, batch = text_only
    modes_fx.attach(model, policy, count_pairs=True)
    try:
        compiled = torch.compile(model, backend=modes_backend, options={"compiler": "eager"})
        for target in policy.targets:
            modes_fx.set_target(model, target)
            with torch.no_grad():
                compiled(**batch.inputs)
            counts = sum(pair_counts(model, reset=True).values())
            pairs, kept = counts[: Modality.PADDING].sum(0).tolist()
            skip_ratio = policy.provenance.reached[str(target)].skip_ratio
            assert target <= skip_ratio <= target + 0.01
            assert 1 - kept / pairs == pytest.approx(skip_ratio, abs=2e-3)
    finally:
        modes_fx.detach(model)


def test_special_tokens_put_a_limit_to_targets_before_anything_is_measured(model, batches) -> None:
    ids = batches[0].inputs["input_ids"]
    processor = SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=ids[0, 3:9].tolist()))
    broken = nn.Module()
    broken.config, broken.experts = model.config, _experts()
    with pytest.raises(UnreachableTargetError, match=r"never skip, .*special_tokens='text'"):
        calibrate(broken, processor, batches, [0.5, 0.99], options=QUICK, progress=False)


@pytest.mark.parametrize("targets", [[], [0.0], [0.5, 1.0], [50]])
def test_targets_are_ratios(model, batches, targets) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(model, NOTHING_SPECIAL, batches, targets)


def test_an_attached_model_is_refused(model, batches) -> None:
    modes_fx.attach(model)
    try:
        with pytest.raises(ValueError, match=r"call modes_fx.detach\(model\) first"):
            calibrate(model, NOTHING_SPECIAL, batches)
    finally:
        modes_fx.detach(model)


def test_a_model_without_experts_is_refused(batches) -> None:
    with pytest.raises(ValueError, match="Linear has no MoE layer to calibrate"):
        calibrate(nn.Linear(2, 2), NOTHING_SPECIAL, batches)


def test_the_user_sees_what_is_to_come_and_how_far_it_is(model, batches, capsys) -> None:
    calibrate(model, NOTHING_SPECIAL, batches, [0.5], options=QUICK)
    shown = " ".join(capsys.readouterr().err.split())
    assert "Calibrating 2 MoE layers of 8 experts on 12 samples (186 text, 48 vision" in shown
    assert "1 pass over them with the full model, about 3 for alpha, about 19 for tau" in shown
    assert "alpha" in shown
    assert "100%" in shown


def test_on_a_trained_model_it_is_far_better_than_chance() -> None:
    model, processor = load_model()
    questions = calibration_questions(60)
    chats = [question_messages(question, with_answer=True) for question in questions]
    options = CalibrationOptions(special_tokens="text", alpha_exponent=0.0)
    found = run_calibration(model, processor, chats, [0.5], options=options, progress=False)
    chosen = found.tuned.chosen[0.5]
    skipping = chosen.measurement
    assert skipping.kl <= chosen.before.kl * 1.02, "extras are off where they do not help"
    with Evaluator(model, found.reference, found.policy) as evaluator:
        again = measure_policy(evaluator, found.policy, 0.5)
        chance = measure_selection(evaluator, RandomSkipping(skipping.skip_ratio))
    assert again.kl == pytest.approx(skipping.kl, rel=1e-6)
    assert chance.skip_ratio == pytest.approx(skipping.skip_ratio, abs=1e-3)
    assert skipping.kl < chance.kl / 4
    assert skipping.accuracy > chance.accuracy


def _experts() -> nn.Module:
    experts = nn.Module()
    experts.up, experts.down = (nn.Parameter(torch.zeros(4, 2, 2)) for _ in range(2))
    return experts
