"""Every shape builds the model's own experts module in the sizes it claims."""

import pytest
import torch

from modes_fx.bench.shapes import SHAPES, find_shape

INTERLEAVED = {"gpt-oss-20b"}


@pytest.mark.parametrize("name", SHAPES)
def test_the_module_has_the_sizes_of_the_shape(name):
    shape = SHAPES[name]
    sizes = {key: tuple(value.shape) for key, value in shape.without_weights().named_parameters()}
    up, down = (2 * shape.width, shape.hidden), (shape.hidden, shape.width)
    if name in INTERLEAVED:
        up, down = up[::-1], down[::-1]
        assert sizes.pop("gate_up_proj_bias") == (shape.experts, 2 * shape.width)
        assert sizes.pop("down_proj_bias") == (shape.experts, shape.hidden)
    assert sizes == {"gate_up_proj": (shape.experts, *up), "down_proj": (shape.experts, *down)}
    assert shape.expert_parameters == up[0] * up[1] + down[0] * down[1]


def test_a_layer_of_the_first_shape_takes_1_2_gigabytes():
    shape = find_shape("qwen3-vl-30b-a3b")
    assert shape.experts * shape.expert_parameters * 2 == 1_207_959_552


def test_weights_are_random_by_seed_and_keep_the_scale():
    shape = find_shape("tiny")
    one, again, other = (shape.build(torch.float32, seed) for seed in (0, 0, 1))
    assert torch.equal(one.down_proj, again.down_proj)
    assert not torch.equal(one.down_proj, other.down_proj)
    assert one.gate_up_proj.std().item() == pytest.approx(shape.hidden**-0.5, rel=0.05)
    assert one.down_proj.std().item() == pytest.approx(shape.width**-0.5, rel=0.05)


def test_an_unknown_shape_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no shape 'huge'; there are qwen3-vl-30b-a3b, kimi"):
        find_shape("huge")


@pytest.mark.parametrize("name", ["tiny", "kimi-vl-a3b", "gpt-oss-20b"])
def test_the_number_of_experts_can_be_another(name):
    module = find_shape(name).with_experts(6).without_weights()
    assert {len(stack) for stack in module.parameters()} == {6}
