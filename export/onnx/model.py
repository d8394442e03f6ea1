"""Write an exported program as an ONNX model on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from torch.export import ExportedProgram

from modes_fx.export.calls import Inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.fixed import fix_images
from modes_fx.export.onnx.lower import Form, lower
from modes_fx.export.onnx.placeholders import OPSET, translate

EXTERNAL_BYTES = 1024
"""From this size on a weight lies in the file beside the model, which itself can have 2 GB."""


@dataclass(frozen=True)
class OnnxModel:
    """What was written.

    Attributes:
        path: the model; its weights lie beside it in a file of the same name with ``.data``.
        layers: how many layers of experts it has.
        opset: of its operators.
        form: how its experts are written.
    """

    path: Path
    layers: int
    opset: int
    form: Form


def save_onnx(
    program: ExportedProgram,
    path: Path,
    form: Form = "unrolled",
    metadata: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    fixed: Inputs | None = None,
) -> OnnxModel:
    """Write a program as a model of standard operators.

    Args:
        program: with ``modes_fx::gate`` and ``modes_fx::experts`` where its layers of experts were.
        path: the file, which gets a second one beside it for weights.
        form: ``"unrolled"`` for ONNX Runtime, ``"blocked"`` for TensorRT-RTX.
        metadata: texts by name that travel in the model, such as the policy.
        outputs: their names; by default those of the program.
        fixed: a call whose images' sizes are the only ones that the model takes; by default it
            takes all that the program does.

    Raises:
        ExportError: an operation has no ONNX form, or the written model is malformed.
    """
    model = translate(program)
    layers = lower(model, form)
    model.metadata_props.update(metadata or {})
    for value, name in zip(model.graph.outputs, outputs, strict=bool(outputs)):
        value.name = name
    if fixed is not None:
        fix_images(model, fixed)
    ir.save(
        model,
        path,
        external_data=f"{path.name}.data",
        size_threshold_bytes=EXTERNAL_BYTES,
    )
    data = path.with_name(f"{path.name}.data")
    if not data.stat().st_size:
        data.unlink()
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the written model {path.name} is malformed: {error}") from error
    return OnnxModel(path, layers, OPSET, form)
