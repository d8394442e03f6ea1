"""The format tensorrt: engines of TensorRT-RTX, and the ONNX model they were built from."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from modes_fx.export.calls import PAST, Inputs, image_sizes, images
from modes_fx.export.engines import COMPUTE_CAPABILITIES, SizeRange, build_engines
from modes_fx.export.onnx.files import Onnx
from modes_fx.export.onnx.lower import Form
from modes_fx.export.program import GatedProgram


@dataclass(frozen=True)
class TensorRt(Onnx):
    """Writes ``<component>.onnx`` and ``<component>.sm<capability>.engine``.

    Engines run only where there is such a GPU. What is loaded and checked is the ONNX model.

    Attributes:
        compute_capabilities: to build engines for.
        largest_batch: how many samples, or images, an engine can take.
        largest_length: how many tokens of a sample, in a prompt or a cache.
    """

    compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES
    largest_batch: int = 8
    largest_length: int = 4096

    name = "tensorrt"
    runs_in = "ONNX Runtime; the engines were built and have not been run"
    tunable = False
    # TensorRT-RTX 1.7 gives up on shapes that are computed from values.
    fixes_images = True
    form: Form = "blocked"

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Write one component.

        Raises:
            ExportError: an operation has no ONNX form, or none that TensorRT-RTX takes.
        """
        sizes = self._sizes(gated, inputs)
        super().write(gated, inputs, folder, component)
        build_engines(folder / f"{component}.onnx", folder, sizes, self.compute_capabilities)

    def keeping(self, gated: GatedProgram, folder: Path, component: str) -> None:
        """Time would be that of another runtime than the engines'."""

    def details(self) -> dict[str, str]:
        """Return the opset, and what the engines were built with and for."""
        return {
            **super().details(),
            "TensorRT-RTX": version("tensorrt-rtx"),
            "compute capabilities": ", ".join(self.compute_capabilities),
        }

    def _sizes(self, gated: GatedProgram, inputs: Inputs) -> dict[str, list[SizeRange | int]]:
        """Return what sizes an engine has to take, for each dimension of each input."""
        nodes = {node.name: node for node in gated.program.graph.nodes}
        names = zip(inputs, gated.program.graph_signature.user_inputs, strict=True)
        shapes = {name: nodes[str(node)].meta["val"].shape for name, node in names}
        batch = str(shapes["input_ids"][0])
        # Lengths follow each other: a mask is one longer than the cache it is for.
        cache = [value.shape[-2] for name, value in inputs.items() if name.startswith(PAST)]
        length = cache[0] if cache else inputs["input_ids"].shape[1]
        fixed = image_sizes(inputs)
        pixels = images(inputs)

        def range_of(size: Any, value: Tensor, name: str, axis: int) -> SizeRange | int:
            usual = value.shape[axis]
            if isinstance(size, int) or (fixed and name in pixels):
                return usual
            if str(size) == batch or name in pixels:
                return SizeRange(1, usual, max(usual, self.largest_batch))
            more = usual - length
            return SizeRange(1 + more, usual, max(usual, self.largest_length + more))

        return {
            name: [range_of(size, inputs[name], name, axis) for axis, size in enumerate(shape)]
            for name, shape in shapes.items()
            if name not in fixed
        }
