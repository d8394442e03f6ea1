"""Models that are spread over devices take their inputs where they begin, and are captured."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module

from modes_fx.attach import find_expert_modules
from modes_fx.calibration import calibrate
from modes_fx.calibration.placement import (
    input_device,
    require_experts_in_place,
    without_transfers,
)


@pytest.fixture
def block(model):
    return copy.deepcopy(model.model.language_model.layers[0].mlp)


def test_inputs_go_where_the_map_begins(model) -> None:
    assert input_device(model) == torch.device("cpu")
    spread = copy.deepcopy(model)
    add_hook_to_module(spread, AlignDevicesHook(execution_device="meta"))
    assert input_device(spread) == torch.device("meta")


def test_hooks_are_gone_inside_and_back_afterwards(block) -> None:
    hook = AlignDevicesHook(execution_device="cpu")
    add_hook_to_module(block.experts, hook)
    with without_transfers([block]):
        assert not hasattr(block.experts, "_hf_hook")
    assert block.experts._hf_hook is hook


def test_a_hook_that_does_more_is_refused_and_all_are_left_as_they_are(block) -> None:
    moving = AlignDevicesHook(execution_device="cpu")
    add_hook_to_module(block.gate, moving)
    add_hook_to_module(block.experts, ModelHook())
    refused = pytest.raises(ValueError, match="Experts with experts has a ModelHook")
    with refused, without_transfers([block]):
        raise AssertionError("it did not refuse")
    assert block.gate._hf_hook is moving


def test_offloaded_experts_are_refused_before_anything_is_run(model) -> None:
    offloaded = copy.deepcopy(model)
    layers = list(find_expert_modules(offloaded))
    require_experts_in_place(offloaded, layers)
    cpu_offload(offloaded.get_submodule(layers[1]), execution_device="cpu")
    with pytest.raises(ValueError, match=rf"1 of 2 layers are offloaded \(the first: {layers[1]}"):
        calibrate(offloaded, None, [], [0.5])


def test_other_modules_may_be_offloaded(model) -> None:
    offloaded = copy.deepcopy(model)
    cpu_offload(offloaded.lm_head, execution_device="cpu")
    require_experts_in_place(offloaded, list(find_expert_modules(offloaded)))
