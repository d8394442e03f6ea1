"""Engines of TensorRT-RTX, built ahead of time on any machine, with or without a GPU.

An engine is built from an ONNX model in the blocked form (``modes_fx.export.onnx.blocked``). It
can be run only where there is such a GPU, so what is checked before is the ONNX model. Needs the
extra ``tensorrt``.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modes_fx.export.errors import ExportError
from modes_fx.export.sizes import SizeRange

COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What engines are built for where nothing else is asked."""


@dataclass(frozen=True)
class Engine:
    """One engine on disk.

    Attributes:
        path: of its file.
        compute_capability: of the GPUs it runs on.
        bytes: its size.
        seconds: what the build took.
        version: of TensorRT-RTX, which has to be the same where it runs.
    """

    path: Path
    compute_capability: str
    bytes: int
    seconds: float
    version: str


def build_engines(
    model: Path,
    folder: Path,
    sizes: Mapping[str, Sequence[SizeRange | int]],
    compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES,
) -> list[Engine]:
    """Build an engine for each compute capability.

    Args:
        model: an ONNX model in the blocked form.
        folder: where ``<model>.sm<capability>.engine`` files are written.
        sizes: by input of the model, for each of its dimensions the sizes it may have; inputs of
            fixed sizes may be left out.
        compute_capabilities: such as ``"8.9"``.

    Returns:
        The engines, in the order of the capabilities.

    Raises:
        ExportError: TensorRT-RTX is missing, knows no such capability, cannot read the model, or
            cannot build it; the message holds what it said.
    """
    trt = _tensorrt_rtx()
    wanted = {capability: _capability(trt, capability) for capability in compute_capabilities}
    return [
        _build(trt, model, folder, sizes, capability, value) for capability, value in wanted.items()
    ]


def _tensorrt_rtx() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise ExportError(
            f"engines need TensorRT-RTX ({error}): pip install 'modes-fx[tensorrt]'"
        ) from error
    return tensorrt_rtx


def _capability(trt: Any, capability: str) -> Any:
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise ExportError(
            f"TensorRT-RTX {trt.__version__} builds no engines for compute capability "
            f"{capability}: choose from {', '.join(sorted(known, key=float))}"
        )
    return known[capability]


def _build(
    trt: Any,
    model: Path,
    folder: Path,
    sizes: Mapping[str, Sequence[SizeRange | int]],
    capability: str,
    value: Any,
) -> Engine:
    begin = time.perf_counter()
    log = _logger(trt)
    builder = trt.Builder(log)
    # Types as the model has them: a share compared in less than float32 would keep other experts.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(f"TensorRT-RTX {trt.__version__} cannot read {model.name}: {errors}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(value, 0)
    config.add_optimization_profile(_profile(builder, network, sizes))
    built = builder.build_serialized_network(network, config)
    if built is None:
        said = "; ".join(log.errors) or "it did not say why"
        raise ExportError(
            f"TensorRT-RTX {trt.__version__} cannot build {model.name} for {capability}: {said}"
        )
    path = folder / f"{model.stem}.sm{capability.replace('.', '')}.engine"
    path.write_bytes(built)
    seconds = time.perf_counter() - begin
    return Engine(path, capability, built.nbytes, seconds, trt.__version__)


def _profile(builder: Any, network: Any, sizes: Mapping[str, Sequence[SizeRange | int]]) -> Any:
    inputs = {
        tensor.name: tuple(tensor.shape)
        for tensor in (network.get_input(i) for i in range(network.num_inputs))
    }
    unknown = sorted(sizes.keys() - inputs.keys())
    if unknown:
        raise ExportError(f"sizes are given for {unknown}, but the inputs are {sorted(inputs)}")
    profile = builder.create_optimization_profile()
    for name, shape in inputs.items():
        given = sizes.get(name, shape)
        if len(given) != len(shape) or any(size == -1 for size in given):
            raise ExportError(
                f"input {name} has the sizes {shape}, where -1 is dynamic: say which sizes each of "
                f"its {len(shape)} dimensions may have"
            )
        ranges = [
            size if isinstance(size, SizeRange) else SizeRange(size, size, size) for size in given
        ]
        profile.set_shape(
            name,
            [size.smallest for size in ranges],
            [size.usual for size in ranges],
            [size.largest for size in ranges],
        )
    return profile


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):
        """Keeps the errors for the message, and prints nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()
