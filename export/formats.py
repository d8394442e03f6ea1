"""What can be written: one class for each format, in one table."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, cast

from torch import Tensor

from modes_fx.export.calls import Inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.program import GatedProgram

Loaded = Callable[[Inputs], list[Tensor]]
"""Takes a component's inputs by name; returns logits and, where it has one, the cache."""


class Format(Protocol):
    """One kind of artifact.

    Attributes:
        name: in ``FORMATS``.
        runs_in: what runs its components when they are checked.
        tunable: whether thresholds can be inputs.
        fixes_images: whether images have the sizes that the component was written with, where the
            model is told them.
    """

    name: str
    runs_in: str
    tunable: bool
    fixes_images: bool

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Write one component into an artifact's folder; ``policy/`` is there already."""

    def load(self, folder: Path, component: str) -> Loaded:
        """Load one component."""

    def keeping(self, gated: GatedProgram, folder: Path, component: str) -> Loaded | None:
        """Return one component with every expert kept, to time; None: there is no way to."""

    def details(self) -> dict[str, str]:
        """Return what a user needs to know of what was written, by name."""


FORMATS: Mapping[str, tuple[str, str, str | None]] = MappingProxyType(
    {
        "pt2": ("modes_fx.export.pt2", "Pt2", None),
        "aoti": ("modes_fx.export.aoti", "Aoti", None),
        "onnx": ("modes_fx.export.onnx.files", "Onnx", "onnx"),
        "tensorrt": ("modes_fx.export.tensorrt", "TensorRt", "tensorrt"),
        "torch_tensorrt": ("modes_fx.export.torch_tensorrt", "TorchTensorRt", "torch-tensorrt"),
    }
)
"""By name: the module and class of a format, and the extra that it needs."""


def find_format(name: str, **options: object) -> Format:
    """Return a format by name.

    Args:
        name: in ``FORMATS``.
        options: of the format; those that are empty are left out.

    Raises:
        ExportError: there is none of that name, it has no such option, or what it needs is not
            installed.
    """
    if name not in FORMATS:
        raise ExportError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    module, kind, extra = FORMATS[name]
    try:
        found = getattr(import_module(module), kind)
        given = {option: value for option, value in options.items() if value}
        if unknown := given.keys() - inspect.signature(found).parameters.keys():
            raise ExportError(f"the format {name} has no option {min(unknown)}")
        return cast(Format, found(**given))
    except ImportError as error:
        raise ExportError(
            f"the format {name} needs {error.name}: pip install 'modes-fx[{extra}]'"
        ) from error
