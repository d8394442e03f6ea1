"""Mean outputs beside a policy: stored, checked and told apart by digest."""

import json
import re

import pytest
import torch

from modes_fx.errors import PolicyError
from modes_fx.policy import SkipPolicy
from modes_fx.policy_means import Means

LAYER = "model.layers.0.mlp.experts"
TABLE = torch.arange(24.0).reshape(2, 3, 4)


def make_policy(means: Means | None, **options) -> SkipPolicy:
    fields = {"alpha": {LAYER: {"text": 1.0, "vision": 1.0}}, "tau": {0.5: {"text": 0.1}, 0.75: {}}}
    return SkipPolicy(**{**fields, "mean_strength": 0.5, "means": means, **options})


def test_a_policy_with_means_survives_being_saved(tmp_path) -> None:
    policy = make_policy(Means({0.5: {LAYER: TABLE.bfloat16()}}))
    policy.save_pretrained(tmp_path)
    loaded = SkipPolicy.from_pretrained(tmp_path)
    assert loaded == policy
    assert torch.equal(loaded.mean_outputs(LAYER, "0.50"), (TABLE / 2).bfloat16())
    assert loaded.mean_outputs(LAYER, 0.75) is None
    assert loaded.mean_outputs(LAYER, None) is None


def test_strengths_by_modality(tmp_path) -> None:
    means = Means({0.5: {LAYER: TABLE}})
    policy = make_policy(means, mean_strength={"text": 0.5, "vision": 1.0})
    assert torch.equal(policy.mean_outputs(LAYER, 0.5), TABLE * torch.tensor([[[0.5]], [[1.0]]]))
    policy.save_pretrained(tmp_path)
    assert SkipPolicy.from_pretrained(tmp_path) == policy
    assert "text 0.5, vision 1" in (tmp_path / "README.md").read_text()
    only_vision = make_policy(means, mean_strength={"vision": 1.0})
    assert not only_vision.mean_outputs(LAYER, 0.5)[0].any(), "what is not named gets nothing"


def test_strengths_of_zero_need_no_means() -> None:
    policy = make_policy(None, mean_strength={"text": 0.0, "vision": 0.0})
    assert not policy.adds_means
    assert policy.mean_outputs(LAYER, 0.5) is None


def test_policies_of_the_version_before_are_read(tmp_path) -> None:
    make_policy(Means({0.5: {LAYER: TABLE}})).save_pretrained(tmp_path)
    path = tmp_path / "modes_policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    assert SkipPolicy.from_pretrained(tmp_path).mean_strength == 0.5


def test_a_policy_replaced_leaves_one_file_of_means(tmp_path) -> None:
    for table in (TABLE, TABLE + 1):
        make_policy(Means({0.5: {LAYER: table}})).save_pretrained(tmp_path, card=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert torch.equal(SkipPolicy.from_pretrained(tmp_path).means.at(0.5)[LAYER], TABLE + 1)
    SkipPolicy(alpha={LAYER: {}}, tau={}).save_pretrained(tmp_path, card=False)
    assert [path.name for path in tmp_path.iterdir()] == ["modes_policy.json"]


def test_means_of_other_numbers_are_not_equal() -> None:
    assert Means({0.5: {LAYER: TABLE}}) == Means({"0.50": {LAYER: TABLE.clone()}})
    assert Means({0.5: {LAYER: TABLE}}) != Means({0.5: {LAYER: TABLE + 1}})


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({0.5: {LAYER: TABLE[0]}}, r"float32 of shape \(3, 4\), not .*\[C, E, H\]"),
        ({0.5: {LAYER: TABLE.long()}}, "int64 of shape"),
        ({0.5: {LAYER: TABLE / 0}}, "not finite"),
        ({0.9: {LAYER: TABLE}}, "means for targets without tau: 0.9"),
        ({0.5: {"other": TABLE}}, "means for layers without alpha: other"),
    ],
)
def test_what_is_wrong_with_means_is_named(tables, message) -> None:
    with pytest.raises(PolicyError, match=message):
        make_policy(Means(tables))


def test_a_strength_needs_means() -> None:
    with pytest.raises(PolicyError, match=r"mean_strength is 0\.5, but there are no means"):
        make_policy(None)


@pytest.fixture
def saved(tmp_path):
    make_policy(Means({0.5: {LAYER: TABLE}})).save_pretrained(tmp_path)
    return tmp_path, next(tmp_path.glob("*.safetensors"))


def test_a_missing_file_is_named(saved) -> None:
    folder, file = saved
    file.unlink()
    with pytest.raises(PolicyError, match=f"{re.escape(file.name)}, which are not beside it"):
        SkipPolicy.from_pretrained(folder)


def test_a_changed_file_is_refused(saved) -> None:
    folder, file = saved
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(PolicyError, match="not of one calibration"):
        SkipPolicy.from_pretrained(folder)


def test_a_policy_read_without_its_means_does_not_skip_without_them(saved) -> None:
    folder, _ = saved
    fields = json.loads((folder / "modes_policy.json").read_text())
    policy = SkipPolicy(**fields)
    with pytest.raises(PolicyError, match=r"read it with SkipPolicy\.from_pretrained"):
        policy.mean_outputs(LAYER, 0.5)
    with pytest.raises(PolicyError, match="names means that it was made without"):
        policy.save_pretrained(folder)
