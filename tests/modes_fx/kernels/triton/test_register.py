"""The CUDA side of the ops: tracing without a GPU, and what is said where kernels cannot run."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from modes_fx import ops
from modes_fx.kernels import compact
from modes_fx.kernels.epilogue import MATMUL, Body, Step
from modes_fx.kernels.triton import register
from modes_fx.vocabulary import Modality
from tests.modes_fx.kernels.triton.bodies import Sizes, problem

SIZES = Sizes(T=5, K=2, E=4, H=16, I=8)


class Gated(torch.nn.Module):
    """The two ops, as a rewritten graph has them."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body.to_json()

    def forward(self, x, index, weight, up, down, modality, tokens, theta):
        E = up.shape[0]
        index, weight = ops.gate(index, weight, modality, tokens, theta, E, "weight", 0.0, 0)
        return ops.experts(x, index, weight, [up, down], self.body, E)


def arguments(dtype=torch.bfloat16):
    given = problem("swiglu", SIZES, dtype, torch.device("cpu"))
    codes = torch.zeros(SIZES.T, dtype=torch.int8)
    theta = torch.zeros(len(Modality))
    tokens = torch.tensor([SIZES.T])
    return given, (given.x, given.index, given.weight, *given.params, codes, tokens, theta)


def on_cuda(tensors):
    """Tensors without data that say they are on a GPU; inside a fake mode."""
    return tuple(torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in tensors)


def test_a_graph_for_cuda_is_traced_and_exported_without_a_gpu() -> None:
    given, args = arguments()
    with FakeTensorMode():
        exported = torch.export.export(Gated(given.body), on_cuda(args))
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert torch.ops.modes_fx.experts.default in targets
    (out,) = [node for node in exported.graph.nodes if node.op == "output"]
    result = out.args[0][0].meta["val"]
    assert result.device.type == "cuda"
    assert (result.shape, result.dtype) == (given.x.shape, torch.bfloat16)


def test_torch_compile_captures_a_full_graph_of_cuda_tensors_without_a_gpu() -> None:
    given, args = arguments()
    graphs = []

    def backend(module, example_inputs):
        graphs.append(module)
        return module.forward

    with FakeTensorMode():
        compiled = torch.compile(Gated(given.body), backend=backend, fullgraph=True)
        result = compiled(*on_cuda(args))
    assert len(graphs) == 1
    assert result.device.type == "cuda"


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_cuda_implementations_compute_what_the_portable_ones_do(beta) -> None:
    given, (x, index, weight, *params, codes, tokens, theta) = arguments(torch.float32)
    theta = theta + 0.3
    options = (codes, tokens, theta, SIZES.E, "renormalised", beta, 1)
    kept = register.gate(index, weight, *options)
    expected = ops.gate(index, weight, *options)
    assert torch.equal(kept[0], expected[0])
    assert_close(kept[1], expected[1])
    body = given.body.to_json()
    out = register.experts(x, *kept, params, body, SIZES.E)
    assert_close(out, ops.experts(x, *expected, params, body, SIZES.E), rtol=1e-5, atol=1e-5)


def test_codes_of_other_tokens_are_refused() -> None:
    _, (_, index, weight, *_) = arguments()
    codes, theta = torch.zeros(3, dtype=torch.int8), torch.zeros(len(Modality))
    with pytest.raises(ValueError, match="5 tokens reach the experts, with 3 modality codes"):
        register.gate(index, weight, codes, None, theta, SIZES.E, "weight", 0.0, 0)


NORMED = Body(
    (True, True),
    (
        Step(MATMUL, ("x", "p0", True)),
        Step("aten.mean.dim", ("%0", [-1], True)),
        Step("aten.sub.Tensor", ("%0", "%1")),
        Step(MATMUL, ("%2", "p1", True)),
    ),
)


def test_a_body_that_cannot_be_printed_runs_portably_and_says_so_once() -> None:
    given = problem("squared_relu", SIZES, torch.float32, torch.device("cpu"))
    args = (given.x, given.index, given.weight, given.params)
    register._warn.cache_clear()
    with pytest.warns(UserWarning, match=r"matmul\(p0\) mean sub .* aten.mean.dim.* an issue"):
        out = register.experts(*args, NORMED.to_json(), SIZES.E)
    assert torch.equal(out, compact.experts(*args, NORMED, SIZES.E))
    with warnings.catch_warnings(action="error"):
        register.experts(*args, NORMED.to_json(), SIZES.E)


def test_without_triton_everything_runs_portably(monkeypatch) -> None:
    given, (x, index, weight, *params, codes, tokens, theta) = arguments(torch.float32)
    monkeypatch.setattr(register, "has_triton", lambda: False)
    register._warn.cache_clear()
    kept = register.gate(index, weight, codes, tokens, theta, SIZES.E, "weight", 0.0, 0)
    assert torch.equal(kept[0], index)
    with pytest.warns(UserWarning, match="Triton is not installed.*pip install"):
        out = register.experts(x, *kept, params, given.body.to_json(), SIZES.E)
    assert torch.equal(out, compact.experts(x, *kept, params, given.body, SIZES.E))


def test_the_experts_may_be_in_a_cuda_graph_where_triton_is_installed() -> None:
    assert torch.Tag.cudagraph_unsafe not in torch.ops.modes_fx.experts.default.tags


def test_what_runs_portably_is_refused_in_a_cuda_graph(monkeypatch) -> None:
    given = problem("squared_relu", SIZES, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"cannot run in a CUDA graph: it is odd, .*reduce-over"):
        register.portable(*given[:4], NORMED.to_json(), SIZES.E, "it is odd")
