"""What the options of ``modes-fx bench`` have in common."""

from enum import StrEnum
from typing import Any

from typer.core import TyperCommand

SKIPS = [0.0, 0.5, 0.88]


class Dtype(StrEnum):
    """Of weights and tokens, as the command line spells it."""

    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def of_torch(self) -> str:
        """As torch spells it."""
        return {"bf16": "bfloat16", "fp32": "float32"}[self]


class CompilerName(StrEnum):
    """What compiles a captured graph."""

    INDUCTOR = "inductor"
    EAGER = "eager"


class LayoutName(StrEnum):
    """Of our weights."""

    DEFAULT = "default"
    PREPACKED = "prepacked"


LAYOUTS = list(LayoutName)


class ListingCommand(TyperCommand):
    """Takes several values after one option: ``--tokens 1 16`` for ``--tokens 1 --tokens 16``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat an option that takes many values in front of each of them."""
        many = {
            name
            for param in self.params
            if getattr(param, "multiple", False)
            for name in param.opts
        }
        spelled: list[str] = []
        option = ""
        for arg in args:
            is_value = not arg.startswith("--")
            if is_value and option in many and spelled[-1] != option:
                spelled.append(option)
            option = option if is_value else arg
            spelled.append(arg)
        return super().parse_args(ctx, spelled)


def cache_bytes(mib: float | None) -> int | None:
    """Return a size in bytes."""
    return None if mib is None else round(mib * 2**20)
