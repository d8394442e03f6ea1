"""The format pt2: a ``torch.export`` program, which needs torch and our op library to run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modes_fx import mean_ops as mean_ops  # registers ops that programs call
from modes_fx import ops as ops
from modes_fx.export.calls import Inputs
from modes_fx.export.program import GatedProgram, keeping_every_expert
from modes_fx.policy_file import POLICY_FILE


class Pt2:
    """Writes and loads ``<component>.pt2``.

    ``import modes_fx.ops`` before ``torch.export.load``: the program calls its ops. The policy is
    inside as well, as the extra file ``modes_policy.json``.
    """

    name = "pt2"
    runs_in = "torch"
    tunable = True
    fixes_images = False

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Write one component."""
        policy = (folder / "policy" / POLICY_FILE).read_text(encoding="utf-8")
        path = folder / f"{component}.pt2"
        torch.export.save(gated.program, path, extra_files={POLICY_FILE: policy})

    def load(self, folder: Path, component: str) -> "Program":
        """Load one component."""
        return Program(torch.export.load(folder / f"{component}.pt2").module())

    def keeping(self, gated: GatedProgram, folder: Path, component: str) -> "Program":
        """Return one component with every expert kept."""
        with keeping_every_expert(gated.program):
            return Program(gated.program.module())

    def details(self) -> dict[str, str]:
        """Kernels are built when they are first run: there is nothing to say of the machine."""
        return {}


class Program:
    """A loaded program."""

    def __init__(self, module: Callable[..., Sequence[Tensor]]) -> None:
        """Wrap an exported module or package."""
        self._module = module

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """Return logits and, where it has one, the cache."""
        with torch.inference_mode():
            return list(self._module(**inputs))
