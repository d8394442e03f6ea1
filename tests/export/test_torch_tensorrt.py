"""What Torch-TensorRT is told of a plugin. It needs a GPU, so what it takes is written down here.

The stand-ins have the names and arguments of torch_tensorrt 2.13 and TensorRT 11.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from modes_fx.export import export
from modes_fx.export.errors import ExportError
from modes_fx.export.plugins.layer import plugins_of
from modes_fx.export.plugins.ptx import Code
from tests.export.conftest import HALF, TEXT
from tests.modes_fx.kernels.triton.bodies import Sizes, problem

SIZES = Sizes(T=5, K=2, E=4, H=24, I=20)


class Sizing(tuple):
    """Sizes as TensorRT gives them."""

    def numel(self) -> int:
        return torch.Size(self).numel()


@pytest.fixture
def told(monkeypatch):
    """Calls of ``ptx_op``, with stand-ins for the packages."""
    calls: list[tuple] = []
    known: set = set()

    def ptx_op(name, ptx, kernel_name, **options):
        calls.append((name, ptx, kernel_name, options))
        namespace, _, op = name.partition("::")
        known.add(getattr(getattr(torch.ops, namespace), op).default)

    modules = {
        "tensorrt": {},
        "tensorrt.plugin": {
            "KernelLaunchParams": SimpleNamespace,
            "SymIntExprs": lambda count: [None] * count,
        },
        "torch_tensorrt": {},
        "torch_tensorrt.dynamo": {},
        "torch_tensorrt.dynamo.conversion": {"DYNAMO_CONVERTERS": known},
        "torch_tensorrt.kernels": {"ptx_op": ptx_op},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    monkeypatch.delitem(sys.modules, "modes_fx.export.torch_tensorrt", raising=False)
    yield calls
    sys.modules.pop("modes_fx.export.torch_tensorrt", None)


@pytest.fixture
def layer():
    given = problem("clamped_interleaved", SIZES, torch.float32, torch.device("cpu"))
    arguments = (given.params, given.body.to_json(), SIZES.E, SIZES.K, "sm_89")
    up, down = plugins_of(given.x, given.weight, *arguments)
    inputs = (given.x, given.weight, given.index.int(), *(given.params[i] for i in up.params))
    return up, down, inputs


def test_a_plugin_is_registered_once_with_its_code(told, layer, monkeypatch) -> None:
    from modes_fx.export import torch_tensorrt as format

    up, _, inputs = layer
    code = Code("plugin_up", "the code", threads=64, shared_bytes=512)
    monkeypatch.setattr(format, "compile_plugin", lambda *arguments: code)
    format.register(up, inputs, "sm_89")
    format.register(up, inputs, "sm_89")
    ((name, ptx, kernel, options),) = told
    assert name == f"modes_fx_plugins::{up.name}"
    assert (ptx, kernel) == (b"the code", "plugin_up")
    inputs_of = "Tensor rows, Tensor weight, Tensor index, Tensor p0, Tensor p1"
    assert options["schema"] == f"({inputs_of}) -> Tensor"
    assert options["meta_fn"](*inputs).shape == (SIZES.T * SIZES.K, SIZES.I)
    assert options["supports_dynamic_shapes"]


def test_a_launch_follows_the_sizes_of_the_call(told, layer) -> None:
    from modes_fx.export import torch_tensorrt as format

    up, down, _ = layer
    described = [SimpleNamespace(shape_expr=Sizing((7, SIZES.K)))] * 3
    code = Code("kernel", "code", threads=128, shared_bytes=256)
    launches = [format._launch(plugin, code, described, None, 0)[0] for plugin in (up, down)]
    assert [launch.grid_x for launch in launches] == [7 * SIZES.K, 7]
    assert [launch.grid_y for launch in launches] == [up.blocks, down.blocks]
    assert {(launch.block_x, launch.shared_mem) for launch in launches} == {(128, 256)}


def test_a_model_on_a_cpu_is_refused(told, gated, tmp_path) -> None:
    with pytest.raises(ExportError, match=r"the model is on cpu: export with --device cuda"):
        export(
            gated.model, gated.policy, HALF, {"text": TEXT}, tmp_path / "a", format="torch_tensorrt"
        )
    assert not (tmp_path / "a").exists()


def test_the_missing_extra_is_named(gated, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", None)
    sys.modules.pop("modes_fx.export.torch_tensorrt", None)
    with pytest.raises(ExportError, match=r"pip install 'modes-fx\[torch-tensorrt\]'"):
        export(
            gated.model, gated.policy, HALF, {"text": TEXT}, tmp_path / "a", format="torch_tensorrt"
        )
