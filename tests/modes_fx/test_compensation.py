"""A policy's extras in a compiled model: what the oracle computes, and nothing where tau is 0."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import modes_fx
from modes_fx import SkipPolicy
from modes_fx.attach import attached, find_expert_modules, set_thetas
from modes_fx.compensation import collect_sums, collected_sums
from modes_fx.policy_means import Means
from modes_fx.vocabulary import Modality
from tests.oracle import codes_of, eager_oracle, middle_threshold
from tests.tiny import chat, compile_observed, left_padded, tiny_vlm

CALL = left_padded(chat(text=9, images=1), chat(text=4, seed=1))
REAL = CALL["attention_mask"].bool()
BETA, STRENGTH = 0.25, {"text": 0.5, "vision": 1.0}


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    return tiny_vlm()


@pytest.fixture(params=["grouped_mm", "batched_mm", "eager"])
def model(pristine, request) -> Iterator[nn.Module]:
    """The model with its experts as matrix products in two forms, and as a loop."""
    torch.compiler.reset()
    model = copy.deepcopy(pristine)
    model.set_experts_implementation(request.param)
    with torch.no_grad():
        yield model


@pytest.fixture(scope="module")
def policy(pristine) -> SkipPolicy:
    """Two targets that skip, with means, and one that does not."""
    layers = list(find_expert_modules(pristine))
    generator = torch.Generator().manual_seed(0)
    tau = {
        target: {
            "text": middle_threshold(pristine, CALL, text),
            "vision": middle_threshold(pristine, CALL, vision),
        }
        for target, text, vision in ((0.5, 0.3, 0.6), (0.75, 0.6, 0.8))
    }
    return SkipPolicy(
        alpha={path: {"text": 1.0, "vision": 1.0} for path in layers},
        tau={0.0: {"text": 0.0, "vision": 0.0}, **tau},
        kept_mass_exponent=BETA,
        mean_strength=STRENGTH,
        means=Means(
            {t: {p: torch.randn(2, 8, 32, generator=generator) for p in layers} for t in tau}
        ),
    )


def expected_logits(pristine: nn.Module, policy: SkipPolicy, target: float) -> torch.Tensor:
    thetas = {path: policy.theta(path, target) for path in policy.alpha}
    means = {path: policy.mean_outputs(path, target) for path in policy.alpha}
    extras = {"kept_mass_exponent": BETA, "means": means}
    with torch.no_grad(), eager_oracle(pristine, thetas, codes_of(CALL), **extras):
        return pristine(**CALL).logits[REAL]


def test_targets_differ_as_the_oracle_says_without_compiling_again(model, pristine, policy) -> None:
    compiled, reports = compile_observed(modes_fx.attach(model, policy), strict=True)
    original = pristine(**CALL).logits[REAL]
    assert_close(compiled(**CALL).logits[REAL], original, rtol=0, atol=1e-5)
    captured = len(reports)
    for target in (0.5, 0.75):
        modes_fx.set_target(model, target)
        expected = expected_logits(pristine, policy, target)
        assert not torch.allclose(expected, original, atol=1e-2)
        assert_close(compiled(**CALL).logits[REAL], expected, rtol=0, atol=1e-5)
    modes_fx.set_target(model, None)
    assert_close(compiled(**CALL).logits[REAL], original, rtol=0, atol=1e-5)
    assert len(reports) == captured


def test_without_means_no_op_is_in_the_graph(model, policy) -> None:
    plain = policy.model_copy(update={"mean_strength": 0.0, "means": None, "means_sha256": None})
    compiled, _ = compile_observed(modes_fx.attach(model, plain), strict=True)
    compiled(**CALL)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        compiled(**CALL)
    ops = {event.name for event in profiled.events() if event.name.startswith("modes_fx::")}
    assert ops == {"modes_fx::gate", "modes_fx::experts"}


def test_what_skipped_experts_put_out_is_added_up_on_the_way(model, pristine, policy) -> None:
    """With a layer's pairs all skipped, each expert's sums are those of the original's outputs."""
    paths = list(find_expert_modules(pristine))
    modes_fx.attach(model)
    collect_sums(attached(model), dict.fromkeys(paths, (2, 8, 32)))
    compiled, _ = compile_observed(model, strict=True)
    theta = policy.theta(paths[0], 0.5)
    set_thetas(model, {paths[-1]: theta})
    compiled(**CALL)
    sums = collected_sums(attached(model))
    assert not sums[paths[0]].any(), "nothing is skipped there"

    seen = {}
    layer = pristine.get_submodule(paths[-1])
    handle = layer.register_forward_pre_hook(lambda _, args: seen.update(args=args))
    pristine(**CALL)
    handle.remove()
    x, index, weight = seen["args"]
    share, codes = weight / weight.sum(-1, keepdim=True), codes_of(CALL)
    for code in (Modality.TEXT, Modality.VISION):
        for e in range(8):
            here = (index == e) & (codes == code)[:, None] & (share < theta[code])
            token, slot = here.nonzero(as_tuple=True)
            alone = torch.full((len(token), 1), e)
            w = weight[token, slot, None]
            y = layer(x[token], alone, w) if len(token) else torch.zeros(0, 32)
            assert_close(sums[paths[-1]][code, e, :32], (w * y).sum(0), rtol=1e-4, atol=1e-5)
            assert_close(sums[paths[-1]][code, e, 32], w.square().sum())


def test_sums_are_collected_with_means_in_force(model, pristine, policy) -> None:
    """Means and sums are both stacked tensors of a layer, but not the weights of its experts."""
    paths = list(find_expert_modules(pristine))
    modes_fx.attach(model, policy)
    collect_sums(attached(model), dict.fromkeys(paths, (2, 8, 32)))
    modes_fx.set_target(model, 0.5)
    compiled, _ = compile_observed(model, strict=True)
    expected = expected_logits(pristine, policy, 0.5)
    assert_close(compiled(**CALL).logits[REAL], expected, rtol=0, atol=1e-5)
    assert all(total.any() for total in collected_sums(attached(model)).values())


def test_inductor_makes_no_call_of_adding_means(pristine, policy) -> None:
    torch.compiler.reset()
    model = modes_fx.attach(copy.deepcopy(pristine), policy)
    compiled = torch.compile(model, backend=modes_fx.modes_backend, options={"strict": True})
    with torch.no_grad():
        for target in (0.5, 0.75):
            modes_fx.set_target(model, target)
            expected = expected_logits(pristine, policy, target)
            assert_close(compiled(**CALL).logits[REAL], expected, rtol=0, atol=1e-5)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            compiled(**CALL)
    names = {event.name for event in profiled.events()}
    assert "modes_fx::experts" in names
    assert "modes_fx::add_skipped_means" not in names
