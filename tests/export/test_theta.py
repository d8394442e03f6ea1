"""An artifact with thresholds as inputs is tuned by them, and by nothing else."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx import PolicyError, SkipPolicy
from modes_fx.export import ExportError, Manifest, export, thresholds, verify
from modes_fx.export.program import exportable_inputs
from modes_fx.export.pt2 import Pt2
from modes_fx.export.theta import check_tunable
from tests.export.conftest import HALF, MORE_TEXT, TEXT


@pytest.fixture(scope="module")
def artifact(gated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "artifact"
    export(gated.model, gated.policy, HALF, {"text": TEXT}, folder, thresholds_as_inputs=True)
    return folder


def test_thresholds_are_those_of_the_policy(gated) -> None:
    theta = thresholds(gated.policy, HALF)
    for row, layer in zip(theta, gated.policy.alpha, strict=True):
        assert_close(row, gated.policy.theta(layer, HALF), rtol=0, atol=0)
    assert bool((thresholds(gated.policy, None)[:, :4] == -torch.inf).all())
    with pytest.raises(PolicyError, match=r"not calibrated for target 0\.6"):
        thresholds(gated.policy, 0.6)


def test_it_says_what_the_rows_are(artifact, gated) -> None:
    text = Manifest.load(artifact).components["text"]
    (theta,) = [value for value in text.inputs if value.name == "theta"]
    assert (theta.dtype, theta.shape) == ("float32", [2, 5])
    assert text.theta_layers == list(gated.policy.alpha)
    assert text.time_ratio is not None


@pytest.mark.parametrize("target", [0.0, HALF])
def test_one_artifact_serves_every_target(artifact, gated, target) -> None:
    given = exportable_inputs(gated.model, MORE_TEXT)
    (logits,) = Pt2().load(artifact, "text")({**given, "theta": thresholds(gated.policy, target)})
    kept = MORE_TEXT["attention_mask"].bool()
    expected = gated.logits(MORE_TEXT, target)[kept]
    assert_close(logits[kept], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_at_the_policys_own_values_it_is_the_one_with_constants(artifact, gated, program) -> None:
    given = exportable_inputs(gated.model, TEXT)
    (constant,) = program.program.module()(**given)
    theta = thresholds(gated.policy, HALF)
    (logits,) = Pt2().load(artifact, "text")({**given, "theta": theta})
    assert_close(logits, constant, rtol=0, atol=0)


def test_each_row_is_of_its_own_layer(artifact, gated) -> None:
    given, run = exportable_inputs(gated.model, TEXT), Pt2().load(artifact, "text")
    half, none = thresholds(gated.policy, HALF), thresholds(gated.policy, None)
    first, second = torch.stack([half[0], none[1]]), torch.stack([none[0], half[1]])
    outputs = [run({**given, "theta": theta})[0] for theta in (half, none, first, second)]
    for i, one in enumerate(outputs):
        assert all(float((one - other).abs().max()) > 1e-4 for other in outputs[:i])


def test_verify_tries_every_target(artifact, gated) -> None:
    checks = verify(artifact, gated.model, {"text": [MORE_TEXT]})
    assert [check.target for check in checks] == [0.0, HALF]
    assert all(check.agrees for check in checks)


def test_formats_with_constants_alone_refuse(gated, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match="constants in the format onnx: use pt2 or aoti"):
        export(
            gated.model,
            gated.policy,
            HALF,
            {"text": TEXT},
            tmp_path / "out",
            format="onnx",
            thresholds_as_inputs=True,
        )


def test_a_policy_with_means_is_refused() -> None:
    alpha, tau = {"layer": {"text": 1.0}}, {0.0: {"text": 0.0}}
    policy = SkipPolicy(alpha, tau, mean_strength=0.5, means_sha256="0" * 64)
    with pytest.raises(ExportError, match=r"mean_strength 0\.5"):
        check_tunable(policy)
