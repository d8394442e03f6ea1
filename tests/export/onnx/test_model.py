"""A program as an ONNX model on disk, reloaded by ONNX Runtime."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.testing import assert_close

from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.lower import FORMS
from modes_fx.export.onnx.model import save_onnx
from modes_fx.kernels.epilogue import Body
from tests.bodies import interleaved_with_biases, random_params, squared_relu

HIDDEN, WIDTH, EXPERTS, TOP_K = 32, 16, 6, 3


class Layer(nn.Module):
    """A router and gated experts, as a rewritten program has them."""

    def __init__(self, body: Body, params, experts: int = EXPERTS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.body, self.experts = body.to_json(), experts
        self.params = nn.ParameterList([nn.Parameter(p, requires_grad=False) for p in params])
        self.router = nn.Linear(hidden, experts, bias=False).requires_grad_(False)
        self.register_buffer("theta", torch.tensor([0.3, 0.4, 0.0, -torch.inf, torch.inf]))
        self.register_buffer("means", torch.randn(2, experts, hidden))

    def forward(self, x, modality):
        chosen, index = self.router(x).softmax(-1).topk(TOP_K)
        kept, weight = torch.ops.modes_fx.gate(
            index, chosen, modality, None, self.theta, self.experts, "renormalised", 0.5, 1
        )
        params = list(self.params)
        out = torch.ops.modes_fx.experts(x, kept, weight, params, self.body, self.experts)
        return torch.ops.modes_fx.add_skipped_means(out, index, chosen, kept, modality, self.means)


def inputs(tokens, hidden=HIDDEN):
    modality = torch.randint(0, 5, (tokens,), dtype=torch.int8)
    return torch.randn(tokens, hidden), modality


def export(layer, hidden=HIDDEN):
    dynamic = {0: Dim("tokens")}
    return torch.export.export(layer, inputs(5, hidden), dynamic_shapes=(dynamic, dynamic))


@pytest.fixture(scope="module")
def layer() -> Layer:
    torch.manual_seed(0)
    body, sizes = interleaved_with_biases(HIDDEN, WIDTH)
    return Layer(body, random_params(sizes, EXPERTS, torch.float32, torch.Generator()))


@pytest.fixture(scope="module")
def program(layer):
    return export(layer)


@pytest.fixture(scope="module", params=FORMS)
def written(program, request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    written = save_onnx(program, path, request.param, {"policy": '{"a": 1}'})
    assert (written.layers, written.form) == (1, request.param)
    return written.path


def test_a_program_runs_in_onnx_runtime_with_new_sizes(layer, written) -> None:
    session = onnxruntime.InferenceSession(str(written))
    for tokens in (1, 9, 64):
        x, modality = inputs(tokens)
        got = session.run(None, {"x": x.numpy(), "modality": modality.numpy()})[0]
        assert_close(torch.from_numpy(got), layer(x, modality), rtol=0, atol=1e-4)


def test_the_model_is_of_standard_operators_and_says_what_it_holds(written) -> None:
    model = onnx.load(written, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert {p.key: p.value for p in model.metadata_props} == {"policy": '{"a": 1}'}
    assert ".py" not in str(model)


def test_a_gate_that_counts_tokens_is_refused(layer, tmp_path) -> None:
    class Counting(nn.Module):
        def forward(self, index, weight, modality, tokens):
            theta = torch.zeros(5)
            return torch.ops.modes_fx.gate(
                index, weight, modality, tokens, theta, 4, "weight", 0.0, 0
            )

    example = (torch.zeros(3, 2).long(), torch.zeros(3, 2), *inputs(4)[1:], torch.tensor([3]))
    program = torch.export.export(Counting(), example)
    with pytest.raises(ExportError, match="no `tokens`"):
        save_onnx(program, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_operation_that_torch_cannot_translate_is_an_export_error(tmp_path) -> None:
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x)

    program = torch.export.export(Unknown(), (torch.eye(3),))
    with pytest.raises(ExportError, match="linalg"):
        save_onnx(program, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", FORMS)
def test_weights_beyond_what_one_protobuf_holds(form, tmp_path) -> None:
    experts, hidden, width = 34, 2048, 4096
    body, sizes = squared_relu(hidden, width)
    params = [torch.zeros(experts, *size) for size in sizes]  # pages that are never written
    for param in params:
        param[1::8] = 0.01
    layer = Layer(body, params, experts, hidden)
    path = save_onnx(export(layer, hidden), tmp_path / "model.onnx", form).path
    assert path.with_name("model.onnx.data").stat().st_size > 2**31
    assert path.stat().st_size < 2**20
    options = onnxruntime.SessionOptions()
    # Otherwise the runtime copies every weight into the order that its products read.
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    x, modality = inputs(3, hidden)
    got = session.run(None, {"x": x.numpy(), "modality": modality.numpy()})[0]
    expected = layer(x, modality)
    assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
