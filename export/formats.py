"""What can be written: one class for each format, in one table."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from modes_fx.export.aoti import Aoti
from modes_fx.export.errors import ExportError
from modes_fx.export.program import GatedProgram, Inputs
from modes_fx.export.pt2 import Pt2

Loaded = Callable[[Inputs], Tensor]
"""Takes a component's inputs by name and returns its logits."""


class Format(Protocol):
    """One kind of artifact."""

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Write one component into an artifact's folder; ``policy/`` is there already."""

    def load(self, folder: Path, component: str) -> Loaded:
        """Load one component."""

    def instruction_set(self) -> str | None:
        """Return what its kernels are built for; None where they are built when loaded."""


FORMATS: Mapping[str, Format] = MappingProxyType({"pt2": Pt2(), "aoti": Aoti()})
"""By name."""


def find_format(name: str) -> Format:
    """Return a format by name.

    Raises:
        ExportError: there is none of that name.
    """
    if name not in FORMATS:
        raise ExportError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
