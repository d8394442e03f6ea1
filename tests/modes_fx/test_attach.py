"""attach, set_target, detach: what they put on a model and what they refuse."""

import copy
import threading

import pytest
import torch
from torch import nn

import modes_fx
from modes_fx import Modality, PolicyError, SkipPolicy
from modes_fx.attach import find_expert_modules
from modes_fx.kernels.triton.config import expected_rows
from tests.tiny import chat, tiny_vlm

LAYERS = [f"model.language_model.layers.{i}.mlp.experts" for i in range(2)]


@pytest.fixture(scope="module")
def pristine():
    return tiny_vlm()


@pytest.fixture
def model(pristine):
    return copy.deepcopy(pristine)


def policy(**options) -> SkipPolicy:
    alpha = {path: {"text": 1.0, "vision": 2.0} for path in LAYERS}
    tau = {0.5: {"text": 0.4, "vision": 0.6}, 0.75: {"text": 0.5, "vision": 1.0}}
    return SkipPolicy(alpha, tau, **options)


def theta_of(model: nn.Module) -> list[float]:
    return model.get_submodule(LAYERS[0]).modes_theta.tolist()


def test_modules_that_own_experts_are_found_by_structure(model) -> None:
    assert list(find_expert_modules(model)) == LAYERS


def test_the_smallest_target_is_in_force_until_another_is_set(model) -> None:
    modes_fx.attach(model, policy())
    assert theta_of(model)[Modality.TEXT] == pytest.approx(0.4)
    modes_fx.set_target(model, 0.75)
    assert theta_of(model)[Modality.VISION] == pytest.approx(0.5)
    modes_fx.set_target(model, None)
    assert theta_of(model)[: Modality.PADDING] == [-torch.inf] * 4


def test_thresholds_are_no_part_of_the_models_state(model) -> None:
    before = set(model.state_dict())
    modes_fx.attach(model, policy())
    assert set(model.state_dict()) == before


def test_detach_leaves_no_trace(model) -> None:
    def trace(module: nn.Module) -> list:
        return [
            (path, sorted(vars(m)), sorted(m._buffers), len(m._forward_pre_hooks))
            for path, m in module.named_modules()
        ]

    before = trace(model)
    modes_fx.detach(modes_fx.attach(model, policy(), count_pairs=True))
    assert trace(model) == before


def test_a_compiled_wrapper_is_attached_through(model) -> None:
    wrapper = torch.compile(model)
    assert modes_fx.attach(wrapper, policy()) is wrapper
    modes_fx.set_target(wrapper, 0.75)
    assert theta_of(model)[Modality.TEXT] == pytest.approx(0.5)
    modes_fx.detach(wrapper)
    assert not hasattr(model, "_modes_attachment")


def test_attaching_twice_is_refused(model) -> None:
    modes_fx.attach(model)
    with pytest.raises(ValueError, match="attached already"):
        modes_fx.attach(model)


def test_a_model_without_moe_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no MoE layer"):
        modes_fx.attach(nn.Linear(2, 2))


def test_a_policy_for_another_model_is_refused_and_leaves_no_trace(model) -> None:
    with pytest.raises(PolicyError, match="config hash"):
        modes_fx.attach(model, policy(config_hash="0" * 64))
    modes_fx.attach(model)


def test_an_unknown_target_is_refused_and_names_the_known_ones(model) -> None:
    with pytest.raises(PolicyError, match=r"0\.9.*0\.5, 0\.75"):
        modes_fx.attach(model, policy(), target=0.9)
    assert not hasattr(model, "_modes_attachment")


def test_a_target_needs_a_policy(model) -> None:
    modes_fx.attach(model)
    with pytest.raises(ValueError, match="needs a policy"):
        modes_fx.set_target(model, 0.5)


def test_a_layer_without_constants_is_kept_whole_and_said_so(model) -> None:
    partial = SkipPolicy({LAYERS[1]: {"text": 1.0}}, {0.5: {"text": 0.4}})
    with pytest.warns(UserWarning, match="no constants for 1 of 2"):
        modes_fx.attach(model, partial)
    assert theta_of(model)[Modality.TEXT] == -torch.inf


def test_an_attached_model_is_not_copied(model) -> None:
    with pytest.raises(TypeError, match="detach it, copy it"):
        copy.deepcopy(modes_fx.attach(model))


def test_counting_must_be_asked_for(model) -> None:
    modes_fx.attach(model)
    with pytest.raises(ValueError, match="count_pairs=True"):
        modes_fx.pair_counts(model)


def test_what_needs_an_attached_model_says_so(model) -> None:
    for call in (modes_fx.detach, modes_fx.pair_counts):
        with pytest.raises(ValueError, match="is not attached"):
            call(model)


def test_an_uncompiled_call_is_not_silent(model) -> None:
    modes_fx.attach(model, policy())
    with pytest.warns(UserWarning, match="did not go through modes_backend"), torch.no_grad():
        model(**chat(text=3))


def test_converting_an_attached_model_is_an_error_not_a_wrong_threshold(model) -> None:
    modes_fx.attach(model, policy()).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"became torch.bfloat16.*detach, convert"):
        model(**chat(text=3))
    modes_fx.detach(model)


def test_the_modality_is_forgotten_after_a_call_even_a_failed_one(model) -> None:
    modes_fx.attach(model, max_tokens=64)
    codes = model._modes_attachment.modality.on(torch.device("cpu")).codes
    seen = []
    model.get_submodule(LAYERS[0]).register_forward_pre_hook(
        lambda *_: seen.append(codes[:8].tolist())
    )
    with torch.no_grad(), pytest.warns(UserWarning, match="did not go"):
        model(**chat(text=2, images=1))
    assert seen == [[0] + [Modality.VISION] * 4 + [0, 0, 0]]
    assert codes.unique().tolist() == [Modality.OTHER]
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[10**6]]))
    assert codes.unique().tolist() == [Modality.OTHER]


def test_two_calls_at_once_are_refused(model) -> None:
    modes_fx.attach(model)
    errors = []

    def call_again(*_) -> None:
        def second() -> None:
            try:
                model(**chat(text=2))
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    handle = model.get_submodule(LAYERS[0]).register_forward_pre_hook(call_again)
    with torch.no_grad(), pytest.warns(UserWarning, match="did not go"):
        model(**chat(text=2))
    handle.remove()
    with torch.no_grad(), pytest.warns(UserWarning, match="did not go"):
        model(**chat(text=2))
    assert len(errors) == 1
    assert "in a call already" in errors[0]


def test_kernels_are_told_what_share_of_the_pairs_to_expect(model) -> None:
    def rows() -> float:
        return expected_rows(tokens=100, top_k=8, num_experts=10)

    modes_fx.attach(model, policy())
    assert rows() == pytest.approx(40)
    modes_fx.set_target(model, 0.75)
    assert rows() == pytest.approx(20)
    modes_fx.set_target(model, None)
    assert rows() == pytest.approx(80)
    modes_fx.set_target(model, 0.75)
    modes_fx.detach(model)
    assert rows() == pytest.approx(80)
