"""Models that are spread over devices take their inputs where they begin, and are captured."""

import copy

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from modes_fx.calibration.placement import input_device, without_transfers


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


def test_offloaded_experts_are_refused_and_left_as_they_are(block) -> None:
    moving = AlignDevicesHook(execution_device="cpu")
    add_hook_to_module(block.gate, moving)
    add_hook_to_module(
        block.experts,
        AlignDevicesHook(
            execution_device="cpu",
            offload=True,
            weights_map=dict(block.experts.state_dict()),
        ),
    )
    with pytest.raises(ValueError, match="the experts are offloaded"), without_transfers([block]):
        raise AssertionError("it did not refuse")
    assert block.gate._hf_hook is moving
