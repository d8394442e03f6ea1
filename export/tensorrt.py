"""The format tensorrt: engines of TensorRT-RTX, and the ONNX model they were built from."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from modes_fx.export.calls import Inputs
from modes_fx.export.engines import COMPUTE_CAPABILITIES, build_engines
from modes_fx.export.onnx.files import Onnx
from modes_fx.export.onnx.lower import Form
from modes_fx.export.program import GatedProgram
from modes_fx.export.sizes import size_ranges


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
        sizes = size_ranges(gated, inputs, self.largest_batch, self.largest_length, fixed=True)
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
