"""Experts, gate and means as standard operators, in ONNX Runtime, against the reference."""

from functools import cache

import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.lower import FORMS
from modes_fx.kernels import reference
from modes_fx.kernels.epilogue import Body, Step
from modes_fx.kernels.panels import prepack
from modes_fx.vocabulary import Modality
from tests.bodies import FORMS as BODIES
from tests.bodies import random_params, random_routing, squared_relu, swiglu
from tests.export.onnx.runtime import model_of, run, session_of

HIDDEN, WIDTH, EXPERTS = 24, 10, 5


class Problem:
    """A layer of experts with tokens for it."""

    def __init__(self, make, tokens=13, top_k=2, experts=EXPERTS, dtype=torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(tokens)
        self.body, sizes = make(HIDDEN, WIDTH)
        self.params = random_params(sizes, experts, dtype, self.generator)
        self.x = torch.randn(tokens, HIDDEN, generator=self.generator).to(dtype)
        self.index, self.weight = random_routing(tokens, top_k, experts, dtype, self.generator)
        self.experts = experts

    def skip(self, share: float) -> "Problem":
        skipped = torch.rand(self.index.shape, generator=self.generator) < share
        self.index = self.index.masked_fill(skipped, self.experts)
        return self

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"x": self.x, "index": self.index, "weight": self.weight}

    def model(self, form) -> ir.Model:
        attributes = {"body": self.body.to_json(), "num_experts": self.experts}
        return model_of("Experts", self.inputs, self.params, attributes, [self.x], form)

    def exact(self) -> Tensor:
        params = [param.float() for param in self.params]
        arguments = (self.x.float(), self.index, self.weight.float(), params)
        return reference.experts(*arguments, self.body, self.experts)

    def assert_right(self, form, tolerance=1e-5) -> None:
        out, exact = run(self.model(form), self.inputs)[0], self.exact()
        assert out.dtype == self.x.dtype
        scale = float(exact.abs().max().clamp_min(1e-6))
        assert_close(out.float(), exact, rtol=0, atol=tolerance * scale)


every_form = pytest.mark.parametrize("form", FORMS)


@every_form
@pytest.mark.parametrize("skipped", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [1, 77])
@pytest.mark.parametrize("body", BODIES)
def test_any_body_gives_what_the_reference_gives(body, tokens, skipped, form) -> None:
    Problem(BODIES[body], tokens).skip(skipped).assert_right(form)


@every_form
@pytest.mark.parametrize("body", BODIES)
def test_float16_is_summed_in_float32(body, form) -> None:
    Problem(BODIES[body], 40, dtype=torch.float16).skip(0.3).assert_right(form, 3e-3)


@every_form
def test_one_model_serves_any_number_of_tokens(form) -> None:
    session = session_of(Problem(swiglu, 3).model(form))
    for tokens in (0, 1, 2, 100):
        case = Problem(swiglu, 3)
        case.x, case.index, case.weight = (
            torch.cat([value] * 40)[:tokens] for value in (case.x, case.index, case.weight)
        )
        out = session.run(None, {name: value.numpy() for name, value in case.inputs.items()})[0]
        assert_close(torch.from_numpy(out), case.exact(), rtol=0, atol=1e-4)


@every_form
def test_an_expert_whose_pairs_are_skipped_is_not_read(form) -> None:
    case = Problem(swiglu, 30)
    case.index[case.index == 2] = EXPERTS
    for param in case.params:
        param[2] = torch.nan
    case.assert_right(form)


@every_form
def test_a_token_s_nan_stays_its_own(form) -> None:
    case = Problem(squared_relu, 30)
    case.x[7, -1] = torch.nan
    out = run(case.model(form), case.inputs)[0]
    assert out[7].isnan().all()
    assert not out[torch.arange(30) != 7].isnan().any()


@every_form
def test_a_token_may_choose_an_expert_twice_and_ids_may_be_out_of_range(form) -> None:
    case = Problem(swiglu, 9)
    case.index[:, 1] = case.index[:, 0]
    case.index[0] = torch.tensor([-1, EXPERTS + 3])
    case.assert_right(form)


@every_form
def test_packed_weights_are_unpacked(form) -> None:
    case = Problem(lambda *_: swiglu(32, 16), 9)
    case.x = torch.randn(9, 32, generator=case.generator)
    expected = case.exact()
    params, body = prepack(case.body.to_json(), case.params)
    case.params, case.body = params, Body.from_json(body)
    assert_close(run(case.model(form), case.inputs)[0], expected, rtol=0, atol=1e-4)


def test_every_weight_is_in_the_model_once() -> None:
    case = Problem(swiglu, 9)
    held = sum(
        value.const_value.nbytes
        for value in case.model("unrolled").graph.initializers.values()
        if value.name.startswith("c")
    )
    assert held == sum(param.nbytes for param in case.params)


@every_form
def test_an_operation_without_a_form_is_named(form, monkeypatch) -> None:
    monkeypatch.setattr("modes_fx.export.onnx.operations.OPERATIONS", {})
    with pytest.raises(ExportError, match=r"aten\.silu\.default, which has no ONNX form"):
        Problem(swiglu).model(form)


def test_weights_that_are_inputs_are_refused_where_they_have_to_be_constants() -> None:
    case = Problem(squared_relu)
    inputs = {**case.inputs, "up": case.params[0], "down": case.params[1]}
    attributes = {"body": case.body.to_json(), "num_experts": EXPERTS}
    with pytest.raises(ExportError, match="parameter up is computed at run time"):
        model_of("Experts", inputs, [], attributes, [case.x], "unrolled")
    model = model_of("Experts", inputs, [], attributes, [case.x], "blocked")
    assert_close(run(model, inputs)[0], case.exact(), rtol=0, atol=1e-5)


def test_a_shared_parameter_is_read_whole() -> None:
    def with_shared_scale(H, width):
        body, sizes = squared_relu(H, width)
        last = Step("aten.mul.Tensor", (f"%{len(body.steps) - 1}", "p2"))
        return Body((True, True, False), (*body.steps, last)), sizes

    for form in FORMS:
        case = Problem(with_shared_scale, 9)
        case.params.append(torch.rand(HIDDEN, generator=case.generator))
        case.assert_right(form)


SHARES = [0.0, 0.05, 0.1, 0.3, 0.5, 0.9]
CODES = torch.tensor([Modality.TEXT, Modality.VISION] * 3, dtype=torch.int8)


@cache
def gate_session(share, exponent, min_k):
    example = torch.zeros(6, 3)
    inputs = {
        "index": example.long(),
        "weight": example,
        "modality": CODES,
        "theta": torch.zeros(len(Modality)),
    }
    attributes = {
        "num_experts": 3,
        "share": share,
        "kept_mass_exponent": exponent,
        "min_k": min_k,
    }
    outputs = [example.long(), example]
    return session_of(model_of("Gate", inputs, [], attributes, outputs))


@given(
    weights=st.lists(
        st.lists(st.sampled_from([*SHARES, float("nan")]), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    ),
    threshold=st.sampled_from([-torch.inf, 0.07, 0.1, 0.21, 0.43, torch.inf]),
    kind=st.sampled_from(["renormalised", "weight"]),
    exponent=st.sampled_from([0.0, 0.25, 1.0]),
    min_k=st.integers(0, 3),
)
@settings(max_examples=300, deadline=None)
def test_the_gate_is_that_of_the_reference(weights, threshold, kind, exponent, min_k) -> None:
    weight = torch.tensor(weights)
    index = torch.arange(3).expand_as(weight).contiguous()
    theta = torch.full((len(Modality),), -torch.inf)
    theta[Modality.VISION] = threshold
    inputs = {"index": index, "weight": weight, "modality": CODES[: len(weight)], "theta": theta}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    got = gate_session(kind, exponent, min_k).run(None, feeds)
    expected = reference.gate(index, weight, CODES, theta, 3, kind, exponent, min_k)
    assert torch.equal(torch.from_numpy(got[0]), expected[0])
    assert_close(torch.from_numpy(got[1]), expected[1], equal_nan=True)


def test_an_unknown_share_is_refused() -> None:
    with pytest.raises(ExportError, match="got 'router'"):
        gate_session("router", 0.0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_means_stand_in_for_skipped_experts(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    index, weight = random_routing(20, 3, EXPERTS, dtype, generator)
    kept = index.masked_fill(torch.rand(index.shape, generator=generator) < 0.5, EXPERTS)
    out = torch.randn(20, HIDDEN, generator=generator).to(dtype)
    modality = torch.randint(0, len(Modality), (20,), generator=generator, dtype=torch.int8)
    means = torch.randn(2, EXPERTS, HIDDEN, generator=generator).to(dtype)
    inputs = {"out": out, "index": index, "weight": weight, "kept": kept, "modality": modality}
    got = run(model_of("AddSkippedMeans", inputs, [means], {}, [out]), inputs)[0]
    expected = reference.add_skipped_means(out, index, weight, kept, modality, means)
    assert_close(got, expected)
