"""attach(model) alone: the policy that lies beside the model is used, or it is said why not."""

import logging

import pytest
from huggingface_hub import constants
from transformers import Qwen3VLMoeForConditionalGeneration

import modes_fx
from modes_fx import PolicyError, SkipPolicy
from modes_fx.fingerprint import config_hash
from modes_fx.policy_file import POLICY_FILE
from modes_fx.policy_stored import stored_policy
from tests.tiny import tiny_vlm

LAYERS = [f"model.language_model.layers.{i}.mlp.experts" for i in range(2)]
COMMIT = "c0ffee" + "0" * 34
REPOSITORY = "org/name"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_vlm().save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved):
    """A model as transformers loads it from a folder, without a policy beside it."""
    yield Qwen3VLMoeForConditionalGeneration.from_pretrained(saved)
    for file in saved.glob("modes_*"):
        file.unlink()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache after a model was loaded, with no network to ask for more."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository


def policy(model, **options) -> SkipPolicy:
    alpha = {path: {"text": 1.0} for path in LAYERS}
    options = {"config_hash": config_hash(model.config), **options}
    return SkipPolicy(alpha, {0.5: {"text": 0.4}, 0.75: {"text": 0.5}}, **options)


def theta_of(model) -> float:
    return model.get_submodule(LAYERS[0]).modes_theta[0].item()


def test_the_policy_in_the_models_folder_is_used(model, saved, caplog) -> None:
    policy(model).save_pretrained(saved)
    with caplog.at_level(logging.INFO):
        modes_fx.attach(model, target=0.75)
    assert theta_of(model) == pytest.approx(0.5)
    assert f"the policy stored in {saved} is used" in caplog.text


def test_none_keeps_every_expert_although_a_policy_lies_there(model, saved) -> None:
    policy(model).save_pretrained(saved)
    modes_fx.attach(model, None)
    assert theta_of(model) == -float("inf")


def test_without_a_policy_every_expert_is_kept(model) -> None:
    modes_fx.attach(model)
    assert theta_of(model) == -float("inf")


def test_a_target_without_a_policy_is_an_error_that_says_where_it_was_sought(model, saved) -> None:
    with pytest.raises(PolicyError, match=rf"(?s){saved.name}' holds no {POLICY_FILE}.*Pass one"):
        modes_fx.attach(model, target=0.5)
    assert not hasattr(model, "_modes_attachment")


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "loaded from no folder"), ("gone/away", "from 'gone/away', which is no")],
)
def test_a_model_from_nowhere_has_no_policy(name, said, model, cache) -> None:
    model.config.name_or_path = name
    assert stored_policy(model) is None
    with pytest.raises(PolicyError, match=said):
        stored_policy(model, required=True)


def test_a_policy_of_another_model_is_refused(model, saved) -> None:
    policy(model, config_hash="0" * 64, model_id="org/other").save_pretrained(saved)
    with pytest.raises(
        PolicyError, match=rf"(?s){saved.name}.*not fit.*org/other.*attach\(model, N"
    ):
        modes_fx.attach(model)


def test_a_broken_policy_is_not_taken_for_none(model, saved) -> None:
    (saved / POLICY_FILE).write_text("{")
    with pytest.raises(PolicyError, match="not JSON"):
        modes_fx.attach(model)


def test_a_hub_models_policy_is_that_of_the_same_commit(model, cache) -> None:
    model.config.name_or_path = REPOSITORY
    policy(model).save_pretrained(cache / "snapshots" / COMMIT)
    assert stored_policy(model) == policy(model)


def test_a_hub_model_known_to_have_none_is_not_asked_for_again(model, cache, recwarn) -> None:
    model.config.name_or_path = REPOSITORY
    (cache / ".no_exist" / COMMIT).mkdir(parents=True)
    (cache / ".no_exist" / COMMIT / POLICY_FILE).touch()
    assert stored_policy(model) is None
    assert not recwarn.list
    with pytest.raises(PolicyError, match=f"'org/name' holds no {POLICY_FILE} at {COMMIT}"):
        stored_policy(model, required=True)


def test_a_hub_out_of_reach_is_said_so(model, cache) -> None:
    model.config.name_or_path = REPOSITORY
    with pytest.warns(UserWarning, match="is not known, so every expert is kept"):
        assert stored_policy(model) is None
    with pytest.raises(PolicyError, match="could not be fetched"):
        stored_policy(model, required=True)
