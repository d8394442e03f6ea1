"""The CPU kernels against the reference, on memory full of NaN."""

import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from modes_fx import ops as ops  # registers the ops
from modes_fx.kernels import cpu, reference
from modes_fx.kernels.cpu.isa import AMX_BF16, AVX2, DEFAULT, detect_isa
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.kernels.panels import prepack
from modes_fx.vocabulary import Modality
from tests.bodies import (
    FORMS,
    integers_and_scales,
    random_params,
    random_routing,
    scaled,
    squared_relu,
    swiglu,
)

HIDDEN, WIDTH = 192, 160

# T, K, E, H and the intermediate size, chosen for the ways in which a product can be computed. Most
# forms are built anew for each intermediate size, so there are few.
PROBLEMS = {
    "one token": (1, 2, 8, HIDDEN, WIDTH),
    "one expert of one": (5, 1, 1, HIDDEN, WIDTH),
    "odd sizes": (13, 3, 5, 75, 33),
    "a few rows": (37, 2, 6, HIDDEN, WIDTH),
    "many rows": (250, 2, 3, 70, 33),
    "long rows": (30, 2, 3, 300, WIDTH),
}


class Problem:
    """One call of the op."""

    def __init__(self, make, tokens, top_k, experts, H, width, dtype=torch.float32) -> None:
        generator = torch.Generator().manual_seed(tokens)
        self.body, sizes = make(H, width)
        self.params = random_params(sizes, experts, dtype, generator)
        self.x = torch.randn(tokens, H, generator=generator).to(dtype)
        self.index, self.weight = random_routing(tokens, top_k, experts, dtype, generator)
        self.experts = experts
        self.generator = generator

    def skip(self, share: float) -> "Problem":
        skipped = torch.rand(self.index.shape, generator=self.generator) < share
        self.index = self.index.masked_fill(skipped, self.experts)
        return self

    def run(self) -> Tensor:
        arguments = (self.x, self.index, self.weight, self.params)
        return torch.ops.modes_fx.experts(*arguments, self.body.to_json(), self.experts)

    def exact(self) -> Tensor:
        params = [param.float() for param in self.params]
        arguments = (self.x.float(), self.index, self.weight.float(), params)
        return reference.experts(*arguments, self.body, self.experts)

    def assert_right(self) -> None:
        exact = self.exact()
        scale = float(exact.abs().max().clamp_min(1e-6))
        assert_close(self.run(), exact, rtol=0, atol=1e-5 * scale)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Leave NaN in the memory that the kernels use again and again."""
    poison = Problem(swiglu, 64, 2, 2, HIDDEN, WIDTH)
    poison.x.fill_(torch.nan)
    assert poison.run().isnan().all()


@pytest.fixture(autouse=True)
def nothing_falls_back():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("skipped", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("form", FORMS)
def test_float32_equals_the_reference(form, problem, skipped) -> None:
    Problem(FORMS[form], *PROBLEMS[problem]).skip(skipped).assert_right()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_no_further_from_float32_than_plain_pytorch(form, problem) -> None:
    case = Problem(FORMS[form], *PROBLEMS[problem], torch.bfloat16).skip(0.3)
    exact = case.exact()
    plain = reference.experts(case.x, case.index, case.weight, case.params, case.body, case.experts)
    assert (case.run().float() - exact).norm() <= (plain.float() - exact).norm() * 1.05 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["swiglu", "swiglu_k_major", "interleaved_with_biases"])
@pytest.mark.parametrize("tokens", [1, 20, 250])
def test_packed_weights_give_the_same(form, tokens, dtype) -> None:
    case = Problem(FORMS[form], tokens, 2, 4, HIDDEN, WIDTH, dtype).skip(0.3)
    plain = case.run()
    case.params, body = prepack(case.body.to_json(), case.params)
    case.body = Body.from_json(body)
    assert_close(case.run(), plain)


class IntegerProblem(Problem):
    """One whose matrices are int8, with a scale for each column of a product."""

    def __init__(self, make, tokens, top_k, experts, H, width, dtype=torch.float32) -> None:
        super().__init__(
            lambda *sizes: scaled(make(*sizes)), tokens, top_k, experts, H, width, dtype
        )
        self.params = integers_and_scales(self.body, self.params, self.generator)


INTEGER_FORMS = ["swiglu", "interleaved_with_biases", "squared_relu", "weighted_input"]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("form", INTEGER_FORMS)
def test_int8_in_float32_equals_the_reference(form, problem) -> None:
    IntegerProblem(FORMS[form], *PROBLEMS[problem]).skip(0.3).assert_right()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("form", INTEGER_FORMS)
def test_int8_in_bfloat16_is_no_further_from_float32_than_plain_pytorch(form, problem) -> None:
    case = IntegerProblem(FORMS[form], *PROBLEMS[problem], torch.bfloat16).skip(0.3)
    exact = case.exact()
    plain = reference.experts(case.x, case.index, case.weight, case.params, case.body, case.experts)
    assert (case.run().float() - exact).norm() <= (plain.float() - exact).norm() * 1.05 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_integer_keeps_its_value(dtype) -> None:
    """One expert, x of ones at one k: the products are the integers themselves."""
    body, _ = scaled(squared_relu(256, 32))
    up = torch.arange(-128, 128).to(torch.int8).repeat(32, 1)[None]
    down = torch.ones(1, 256, 32, dtype=torch.int8)
    ones = [torch.ones(1, 32, dtype=dtype), torch.ones(1, 256, dtype=dtype) / 32]
    x = torch.eye(256, dtype=dtype)
    index, weight = torch.zeros(256, 1, dtype=torch.long), torch.ones(256, 1, dtype=dtype)
    for rows in (1, 5, 40, 256):
        arguments = (x[-rows:], index[:rows], weight[:rows], [up, down, *ones])
        out = torch.ops.modes_fx.experts(*arguments, body.to_json(), 1)
        assert_close(out[:, 0], (up[0, 0, -rows:].to(dtype).relu() ** 2))


def test_tokens_without_pairs_are_zero_and_read_nothing() -> None:
    case = Problem(swiglu, 30, 2, 4, HIDDEN, WIDTH)
    case.index[10:20] = case.experts
    case.x[10:20] = torch.nan
    out = case.run()
    assert (out[10:20] == 0).all()
    assert not out.isnan().any()
    case.index.fill_(case.experts)
    assert (case.run() == 0).all()


def test_weights_of_skipped_experts_are_not_read() -> None:
    case = Problem(swiglu, 30, 2, 4, HIDDEN, WIDTH)
    case.index[case.index == 2] = case.experts
    for param in case.params:
        param[2] = torch.nan
    assert not case.run().isnan().any()


def test_a_token_s_nan_stays_its_own() -> None:
    case = Problem(squared_relu, 30, 2, 4, 75, 33)
    case.x[7, -1] = torch.nan
    out = case.run()
    assert out[7].isnan().all()
    assert not out[torch.arange(30) != 7].isnan().any()


def test_a_token_may_choose_an_expert_twice() -> None:
    case = Problem(swiglu, 9, 2, 4, HIDDEN, WIDTH)
    case.index[:, 1] = case.index[:, 0]
    case.assert_right()


@pytest.mark.parametrize("tokens", [3, 100])
@pytest.mark.parametrize("form", ["swiglu", "swiglu_k_major"])
def test_the_number_of_threads_changes_no_bit(form, tokens) -> None:
    case = Problem(FORMS[form], tokens, 3, 6, HIDDEN, WIDTH).skip(0.3)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            outputs.append(case.run())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, outputs[0]) for out in outputs)


def test_any_inputs_that_pytorch_would_take() -> None:
    case = Problem(swiglu, 12, 2, 4, HIDDEN, WIDTH)
    expected = case.run()
    case.x, case.weight = case.x.T.contiguous().T, case.weight.double()
    case.index = case.index.int()
    assert_close(case.run(), expected)
    case.x, case.index, case.weight = case.x[:0], case.index[:0], case.weight[:0]
    assert case.run().shape == (0, HIDDEN)


@pytest.mark.parametrize("form", ["swiglu", "swiglu_k_major"])
def test_weights_may_be_mapped_from_a_file(form, tmp_path) -> None:
    case = Problem(FORMS[form], 12, 2, 4, HIDDEN, WIDTH, torch.bfloat16)
    expected = case.run()
    save_file({f"p{i}": param for i, param in enumerate(case.params)}, tmp_path / "weights")
    with safe_open(tmp_path / "weights", "pt") as file:
        case.params = [file.get_tensor(name) for name in sorted(file.keys())]
    assert torch.equal(case.run(), expected)
    case.params = [off_alignment(param) for param in case.params]
    assert torch.equal(case.run(), expected)


def off_alignment(param: Tensor) -> Tensor:
    moved = param.new_empty(param.numel() + 1)[1:].view(param.shape)
    return moved.copy_(param)


def test_parameters_that_do_not_fit_are_an_error() -> None:
    case = Problem(swiglu, 12, 2, 4, HIDDEN, WIDTH)
    case.params[1] = case.params[1][:, :-1].contiguous()
    with pytest.raises(ValueError, match="down projection does not give H columns"):
        case.run()
    case = Problem(swiglu, 12, 2, 4, HIDDEN, WIDTH)
    case.weight = case.weight[:, :1]
    with pytest.raises(ValueError, match=r"weight \[T, K\]"):
        case.run()


def with_one_product(case: Problem) -> None:
    case.body = Body((True,), (Step(MATMUL, ("x", "p0", True)),))
    case.params = case.params[:1]


def with_strides(case: Problem) -> None:
    case.params[0] = case.params[0].transpose(1, 2).contiguous().transpose(1, 2)


def with_another_dtype(case: Problem) -> None:
    case.params[0] = case.params[0].bfloat16()


def with_some_integers(case: Problem) -> None:
    case.params[0] = (case.params[0] * 50).to(torch.int8)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (with_one_product, "has 1 matrix products"),
        (with_strides, "not contiguous, or neither int8 nor in float32"),
        (with_another_dtype, "not contiguous, or neither int8 nor in float32"),
        (with_some_integers, "some are int8, but not all matrices"),
    ],
)
def test_what_has_no_kernel_says_so_once_and_is_right(spoil, reason) -> None:
    case = Problem(swiglu, 12, 2, 4, HIDDEN, HIDDEN // 2)
    spoil(case)
    with pytest.warns(UserWarning, match=reason):
        case.assert_right()
    case.assert_right()


def test_int8_weights_of_another_layout_have_no_kernel() -> None:
    case = Problem(FORMS["swiglu_k_major"], 12, 2, 4, HIDDEN, WIDTH)
    case.params = [(param * 50).to(torch.int8) for param in case.params]
    with pytest.warns(UserWarning, match=r"as \[E, N, K\]"):
        case.assert_right()


share = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.9])


@given(
    weights=st.lists(st.lists(share, min_size=3, max_size=3), min_size=1, max_size=6),
    threshold=st.sampled_from([-torch.inf, 0.07, 0.21, 0.43, torch.inf]),
    kind=st.sampled_from(["renormalised", "weight"]),
    exponent=st.sampled_from([0.0, 0.25, 1.0]),
    min_k=st.integers(0, 3),
    nan=st.booleans(),
)
@settings(max_examples=300)
def test_the_gate_is_that_of_the_reference(weights, threshold, kind, exponent, min_k, nan) -> None:
    weight = torch.tensor(weights)
    if nan:
        weight[0, 1] = torch.nan
    index = torch.arange(3).expand_as(weight).contiguous()
    theta = torch.full((len(Modality),), -torch.inf)
    theta[Modality.VISION] = threshold
    codes = torch.tensor([Modality.TEXT, Modality.VISION] * 3, dtype=torch.int8)
    options = (3, kind, exponent, min_k)
    got = torch.ops.modes_fx.gate(index, weight, codes, torch.tensor([0]), theta, *options)
    expected = reference.gate(index, weight, codes, theta, *options)
    assert torch.equal(got[0], expected[0])
    assert_close(got[1], expected[1], equal_nan=True)


@given(
    ids=st.lists(st.lists(st.integers(-1, 5), min_size=3, max_size=3), max_size=20),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
@settings(max_examples=200)
def test_pairs_are_sorted_by_expert_and_stay_in_order(ids, dtype) -> None:
    index = torch.tensor(ids, dtype=dtype).view(-1, 3)
    weight = torch.arange(index.numel()).view(-1, 3).bfloat16()
    expected = reference.sort_pairs(index, weight, 5)
    assert_close(tuple(torch.ops.modes_fx.sort_pairs(index, weight, 5)), expected)


# Without a matrix unit, brgemm runs on processors that have its dtype.
OTHERS = (AMX_BF16, DEFAULT) if torch.cpu._is_avx512_bf16_supported() else (DEFAULT,)
RUNNABLE = [AVX2, *(pytest.param(isa, marks=pytest.mark.slow) for isa in OTHERS)]
FEW = "(float32_equals or bfloat16) and swiglu and not k_major and odd"
EACH_LAYOUT = (
    "(float32_equals and (odd or few or many or long) or bfloat16 or packed or integer)"
    " and not separate and not squared and not weighted"
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("chosen", [FEW, pytest.param(EACH_LAYOUT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda isa: isa.name)
def test_other_instruction_sets_compute_the_same(isa, chosen) -> None:
    """Each builds every kernel again, so that few are enough for a test of every day."""
    environment = os.environ | {"MODES_FX_ISA": isa.name}
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def run_python(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


CALL = """
    import torch
    {imports}
    torch.manual_seed(0)
    body, sizes = {body!r}, {sizes!r}
    params = [torch.randn(4, *size) for size in sizes]
    x, index, weight = torch.randn(5, 64), torch.rand(5, 4).topk(2).indices, torch.rand(5, 2)
    out = torch.ops.modes_fx.experts(x, index, weight, params, body, 4)
    print(float(out.double().sum()))
"""


@pytest.fixture
def fused() -> float:
    """What the call gives here."""
    body, sizes = swiglu(64, 32)
    torch.manual_seed(0)
    params = [torch.randn(4, *size) for size in sizes]
    x, index, weight = torch.randn(5, 64), torch.rand(5, 4).topk(2).indices, torch.rand(5, 2)
    out = torch.ops.modes_fx.experts(x, index, weight, params, body.to_json(), 4)
    return float(out.double().sum())


def test_a_process_without_a_compiler_is_told_and_still_right(fused, tmp_path) -> None:
    body, sizes = swiglu(64, 32)
    source = CALL.format(imports="import modes_fx.ops", body=body.to_json(), sizes=sizes)
    portable = run_python(source, CXX="/no/compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert portable.returncode == 0, portable.stderr
    assert "there is no C++ compiler: install one" in portable.stderr
    assert float(portable.stdout) == pytest.approx(fused, rel=1e-5)


def test_the_libraries_work_in_a_process_that_has_torch_alone(fused) -> None:
    body, sizes = swiglu(64, 32)
    paths = [cpu.build_library(), cpu.build_kernel(body, "float32", detect_isa())]
    load = "\n    ".join(f"torch.ops.load_library({str(path)!r})" for path in paths)
    alone = run_python(CALL.format(imports=load, body=body.to_json(), sizes=sizes))
    assert alone.returncode == 0, alone.stderr
    assert float(alone.stdout) == pytest.approx(fused, rel=1e-5)
