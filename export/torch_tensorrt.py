"""The format torch_tensorrt: a program whose parts are TensorRT engines, experts included.

Needs a GPU, the extra ``torch-tensorrt``, and a build of torch for CUDA. Experts are plugins
(``modes_fx.export.plugins``): our Triton kernels, inside the engines as PTX. Nothing of this has
been run: no GPU was at hand. What needs none, the program and the PTX, is tested; like every
artifact it is compared with its model before it is kept.
"""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorrt.plugin as trt_plugin
import torch
import torch_tensorrt
from torch import Tensor
from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS
from torch_tensorrt.kernels import ptx_op

from modes_fx.export.calls import Inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.plugins.layer import Plugin
from modes_fx.export.plugins.program import NAMESPACE, op_of, with_plugins
from modes_fx.export.plugins.ptx import Code, compile_plugin
from modes_fx.export.program import GatedProgram
from modes_fx.export.pt2 import Program
from modes_fx.export.sizes import SizeRange, size_ranges
from modes_fx.kernels.triton.limits import device_of


@dataclass(frozen=True)
class TorchTensorRt:
    """Writes and loads ``<component>.trt.pt2``.

    ``import torch_tensorrt`` before ``torch.export.load``. It runs on GPUs of the same kind, with
    the same release of TensorRT.

    Attributes:
        largest_batch: how many samples, or images, it can take.
        largest_length: how many tokens of a sample, in a prompt or a cache.
    """

    largest_batch: int = 8
    largest_length: int = 4096

    name = "torch_tensorrt"
    runs_in = "TensorRT, through Torch-TensorRT"
    tunable = False
    fixes_images = False

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Build the engines of one component.

        Raises:
            ExportError: the model is on no GPU, or a layer computes what the kernels cannot.
        """
        compiled = self._compile(gated, inputs)
        path = str(folder / f"{component}.trt.pt2")
        torch_tensorrt.save(compiled, path, kwarg_inputs=dict(inputs))

    def load(self, folder: Path, component: str) -> Program:
        """Load one component."""
        return Program(torch.export.load(folder / f"{component}.trt.pt2").module())

    def keeping(self, gated: GatedProgram, folder: Path, component: str) -> None:
        """Engines hold thresholds as constants, and a second set would take as long to build."""

    def details(self) -> dict[str, str]:
        """Return what the engines were built with and for."""
        return {
            "TensorRT": version("tensorrt"),
            "Torch-TensorRT": version("torch-tensorrt"),
            "compute capability": device_of(torch.device("cuda")).target,
        }

    def _compile(self, gated: GatedProgram, inputs: Inputs) -> Any:
        device = inputs["input_ids"].device
        if device.type != "cuda":
            raise ExportError(
                f"the format {self.name} builds engines on the GPU they are for, and the model is "
                f"on {device}: export with --device cuda, or in the format tensorrt, which needs "
                "no GPU"
            )
        target = device_of(device).target
        program, plugins = with_plugins(gated.program, target)
        for plugin, taken in plugins.values():
            register(plugin, taken, target)
        ranges = size_ranges(
            gated, inputs, self.largest_batch, self.largest_length, fixed=self.fixes_images
        )
        described = {name: _input(value, ranges[name], name) for name, value in inputs.items()}
        return torch_tensorrt.dynamo.compile(program, kwarg_inputs=described, min_block_size=1)


def register(plugin: Plugin, inputs: tuple[Tensor, ...], target: str) -> None:
    """Make TensorRT know a plugin, and Torch-TensorRT put it where its op is.

    Args:
        plugin: of a layer; one that is known already is left as it is.
        inputs: that it has in a layer.
        target: of the GPU.
    """
    op = op_of(plugin)
    if op in DYNAMO_CONVERTERS:
        return
    code = compile_plugin(plugin, inputs, target)
    ptx_op(
        f"{NAMESPACE}::{plugin.name}",
        code.ptx.encode(),
        code.entry,
        meta_fn=lambda *given: plugin.output(given[2]),
        eager_fn=op,
        aot_fn=partial(_launch, plugin, code),
        supports_dynamic_shapes=True,
        schema=plugin.schema,
    )


def _launch(plugin: Plugin, code: Code, inputs: Any, outputs: Any, tactic: int) -> tuple[Any, Any]:
    """Return how TensorRT launches a plugin's kernel, by the sizes it then has."""
    pairs = inputs[2].shape_expr
    launched = trt_plugin.KernelLaunchParams()
    launched.grid_x = pairs.numel() if plugin.per_pair else pairs[0]
    launched.grid_y = plugin.blocks
    launched.block_x = code.threads
    launched.shared_mem = code.shared_bytes
    return launched, trt_plugin.SymIntExprs(0)


def _input(value: Tensor, sizes: list[SizeRange | int], name: str) -> Any:
    if all(isinstance(size, int) for size in sizes):
        return torch_tensorrt.Input(value.shape, dtype=value.dtype, name=name)
    ends = {
        end: tuple(getattr(s, end) if isinstance(s, SizeRange) else s for s in sizes)
        for end in ("smallest", "usual", "largest")
    }
    return torch_tensorrt.Input(
        min_shape=ends["smallest"],
        opt_shape=ends["usual"],
        max_shape=ends["largest"],
        dtype=value.dtype,
        name=name,
    )
