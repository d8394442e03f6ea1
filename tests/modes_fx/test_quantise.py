"""Quantised experts: the model still answers by itself, and the backend reads what is stored."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import modes_fx
from modes_fx import quantise_experts
from modes_fx.attach import find_expert_modules, keep_all_theta, set_thetas
from modes_fx.passes.report import COMPUTED
from modes_fx.quantise import Int8Weight, least_used, quantise_int4, quantise_int8
from modes_fx.vocabulary import Modality
from tests.oracle import codes_of, eager_oracle, middle_threshold
from tests.tiny import GroupedExperts, chat, compile_observed, routed_tokens, tiny_vlm

pytest.importorskip("torchao")

CALL = chat(text=7, images=1)


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    return tiny_vlm()


@pytest.fixture
def model(pristine) -> Iterator[nn.Module]:
    torch.compiler.reset()
    with torch.no_grad():
        yield copy.deepcopy(pristine)


def mixed(model: nn.Module) -> dict[str, list[int]]:
    return {path: [8, 4, 4, 8, 8, 4, 8, 4] for path in find_expert_modules(model)}


@pytest.mark.parametrize(
    ("bits", "weights", "largest_error"),
    [(8, "int8", 0.05), (4, COMPUTED, 0.5), (mixed, COMPUTED, 0.5)],
)
def test_skipping_in_a_quantised_model_is_that_of_its_own_code(
    model, pristine, bits, weights, largest_error
) -> None:
    done = quantise_experts(model, bits(model) if callable(bits) else bits, group_size=8)
    assert done.layers == tuple(find_expert_modules(pristine))
    assert done.bytes_after < 0.35 * done.bytes_before
    eager = copy.deepcopy(model)
    full, own = pristine(**CALL).logits, eager(**CALL).logits
    assert 0 < (own - full).norm() / full.norm() < largest_error

    compiled, reports = compile_observed(modes_fx.attach(model), strict=True)
    assert_close(compiled(**CALL).logits, own, rtol=0, atol=1e-5)
    assert {report.path: report.weights for report in reports} == dict.fromkeys(
        done.layers, weights
    )

    theta = keep_all_theta()
    theta[Modality.TEXT] = middle_threshold(eager, CALL, 0.3)
    theta[Modality.VISION] = middle_threshold(eager, CALL, 0.6)
    thetas = dict.fromkeys(done.layers, theta)
    set_thetas(model, thetas)
    with eager_oracle(eager, thetas, codes_of(CALL)):
        assert_close(compiled(**CALL).logits, eager(**CALL).logits, rtol=0, atol=1e-5)


def test_experts_that_looked_up_one_matrix_a_row_are_read_as_int8_too(model) -> None:
    quantise_experts(model, 8)
    model.set_experts_implementation("batched_mm")
    own = model(**CALL).logits
    compiled, reports = compile_observed(modes_fx.attach(model), strict=True)
    assert_close(compiled(**CALL).logits, own, rtol=0, atol=1e-5)
    assert {(report.form, report.weights) for report in reports} == {("batched_mm", "int8")}


def test_transposed_weights_are_stored_as_rows_of_output_columns() -> None:
    module = GroupedExperts()
    module.is_transposed = True
    module.up = nn.Parameter(module.up.detach().transpose(1, 2).contiguous())
    module.down = nn.Parameter(module.down.detach().transpose(1, 2).contiguous())
    before = module.up.detach().clone()
    quantise_experts(module, 8)
    assert module.parametrizations.up.original.shape == before.transpose(1, 2).shape
    assert module.up.shape == before.shape
    assert_close(module.up, before, rtol=0, atol=float(before.abs().max()) / 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_torchao_computes_back_is_what_we_compute(dtype) -> None:
    from torchao.quantization.quant_primitives import dequantize_affine

    weight = torch.randn(3, 10, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    integers, scale = quantise_int8(weight)
    for e in range(3):
        theirs = dequantize_affine(
            integers[e], (1, 16), scale[e], torch.zeros(10), torch.int8, output_dtype=dtype
        )
        assert_close(Int8Weight(scale, False)(integers)[e], theirs, rtol=2**-7, atol=1e-6)


def test_a_weight_of_few_values_survives_four_bits() -> None:
    weight = torch.randint(-8, 8, (2, 4, 16), generator=torch.Generator().manual_seed(0)).float()
    weight[..., 0::8], weight[..., 1::8] = -8, 7
    packed, scale = quantise_int4(weight, 8)
    assert packed.shape == (2, 4, 8)
    from modes_fx.quantise import Int4Weight

    assert (Int4Weight(scale, False)(packed) - weight).abs().max() <= 8 / 15


def test_the_least_used_experts_get_four_bits() -> None:
    choices = {"layer": torch.tensor([5, 0, 9, 2])}
    assert least_used(choices) == {"layer": [8, 4, 8, 4]}
    assert least_used(choices, 0.0) == {"layer": [8] * 4}
    with pytest.raises(ValueError, match="between 0 and 1"):
        least_used(choices, 2)


class ScaledRows(nn.Module):
    """A near miss of ``Int8Weight``: one scale for each input column."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, integers: Tensor) -> Tensor:
        return integers.to(self.scale.dtype) * self.scale.unsqueeze(1)


def test_scales_of_input_columns_are_not_moved_behind_the_product() -> None:
    module = GroupedExperts()
    for name in ("up", "down"):
        shape = getattr(module, name).shape
        delattr(module, name)
        integers = torch.randint(-9, 9, shape, dtype=torch.int8)
        module.register_parameter(name, nn.Parameter(integers, requires_grad=False))
        scale = torch.rand(shape[0], shape[2]) + 0.5
        nn.utils.parametrize.register_parametrization(module, name, ScaledRows(scale), unsafe=True)
    with torch.no_grad():
        compiled, reports = compile_observed(module)
        compiled(*routed_tokens())
    (report,) = reports
    assert report.status == "refused"
    assert "scales do not belong to output columns" in report.reason


def halved(model: nn.Module) -> None:
    model.half()


def already_attached(model: nn.Module) -> None:
    modes_fx.attach(model)


def already_quantised(model: nn.Module) -> None:
    quantise_experts(model)


@pytest.mark.parametrize(
    ("spoil", "options", "reason"),
    [
        (halved, {}, "float16: quantised experts are for"),
        (already_attached, {}, "the model is attached"),
        (already_quantised, {}, "not quantised yet"),
        (None, {"bits": 3}, "bits must be 4 or 8, got 3"),
        (None, {"bits": 4, "group_size": 7}, "groups of 7 do not divide"),
        (None, {"bits": {"x": [8]}}, "bits must be given for the layers"),
    ],
)
def test_what_cannot_be_quantised_is_an_error_and_changes_nothing(model, spoil, options, reason):
    if spoil is not None:
        spoil(model)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=reason):
        quantise_experts(model, **options)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_slow_weights_are_told(model) -> None:
    quantise_experts(model, 4, group_size=8)
    compiled = torch.compile(
        modes_fx.attach(model), backend=modes_fx.modes_backend, options={"compiler": "eager"}
    )
    with pytest.warns(UserWarning, match="compute all their experts' weights at every call"):
        compiled(**CALL)
