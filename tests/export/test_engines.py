"""Engines built without a GPU. They cannot be run here, so what is built is what is tested."""

import sys

import pytest
import torch
from torch import nn
from torch.export import Dim

from modes_fx.export.engines import COMPUTE_CAPABILITIES, build_engines
from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.model import save_onnx
from modes_fx.export.sizes import SizeRange
from tests.bodies import random_params, swiglu

HIDDEN, EXPERTS = 32, 4
TOKENS = SizeRange(1, 64, 1024)
SIZES = {"x": (TOKENS, HIDDEN), "modality": (TOKENS,)}


class Layer(nn.Module):
    def __init__(self, dtype) -> None:
        super().__init__()
        body, sizes = swiglu(HIDDEN, 16)
        self.body = body.to_json()
        params = random_params(sizes, EXPERTS, dtype, torch.Generator())
        self.params = nn.ParameterList([nn.Parameter(p, requires_grad=False) for p in params])
        self.router = nn.Linear(HIDDEN, EXPERTS, dtype=dtype)
        self.register_buffer("theta", torch.tensor([0.3, 0.4, 0.0, -torch.inf, torch.inf]))

    def forward(self, x, modality):
        weight, index = self.router(x).softmax(-1).topk(2)
        index, weight = torch.ops.modes_fx.gate(
            index, weight, modality, None, self.theta, EXPERTS, "renormalised", 0.5, 1
        )
        params = list(self.params)
        return torch.ops.modes_fx.experts(x, index, weight, params, self.body, EXPERTS)


def model_in(folder, form, dtype=torch.float32):
    example = (torch.randn(5, HIDDEN, dtype=dtype), torch.zeros(5, dtype=torch.int8))
    dynamic = {0: Dim("tokens")}
    program = torch.export.export(Layer(dtype), example, dynamic_shapes=(dynamic, dynamic))
    return save_onnx(program, folder / "model.onnx", form).path


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    pytest.importorskip("tensorrt_rtx")
    return model_in(tmp_path_factory.mktemp("blocked"), "blocked")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_engines_are_built_for_every_capability(dtype, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engines = build_engines(model_in(tmp_path, "blocked", dtype), tmp_path, SIZES)
    assert [engine.compute_capability for engine in engines] == list(COMPUTE_CAPABILITIES)
    for engine in engines:
        assert engine.path.stat().st_size == engine.bytes > 1000
    assert engines[0].path.name == "model.sm80.engine"
    assert len({engine.path.read_bytes() for engine in engines}) == len(engines)


@pytest.mark.slow
def test_branches_are_refused_with_what_tensorrt_says(tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ExportError, match=r"cannot read model\.onnx: .*reduction"):
        build_engines(model_in(tmp_path, "unrolled"), tmp_path, SIZES)


@pytest.mark.slow
def test_sizes_have_to_be_given_for_what_is_dynamic(blocked, tmp_path) -> None:
    with pytest.raises(ExportError, match=r"input modality has the sizes \(-1,\)"):
        build_engines(blocked, tmp_path, {"x": SIZES["x"]})
    with pytest.raises(ExportError, match=r"given for \['y'\], but the inputs are"):
        build_engines(blocked, tmp_path, {**SIZES, "y": (1,)})


@pytest.mark.slow
def test_an_unknown_capability_is_refused_before_anything_is_built(blocked, tmp_path) -> None:
    with pytest.raises(ExportError, match=r"capability 7\.0: choose from .*8\.0"):
        build_engines(blocked, tmp_path, SIZES, ["8.0", "7.0"])
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(ExportError, match=r"pip install 'modes-fx\[tensorrt\]'"):
        build_engines(tmp_path / "model.onnx", tmp_path, SIZES)
