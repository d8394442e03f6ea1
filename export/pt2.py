"""The format pt2: a ``torch.export`` program, which needs torch and our op library to run."""

from pathlib import Path

import torch
from torch import Tensor

from modes_fx.export.program import GatedProgram, Inputs
from modes_fx.policy_file import POLICY_FILE


class Pt2:
    """Writes and loads ``<component>.pt2``.

    ``import modes_fx.ops`` before ``torch.export.load``: the program calls its ops. The policy is
    inside as well, as the extra file ``modes_policy.json``.
    """

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Write one component."""
        policy = (folder / "policy" / POLICY_FILE).read_text(encoding="utf-8")
        path = folder / f"{component}.pt2"
        torch.export.save(gated.program, path, extra_files={POLICY_FILE: policy})

    def load(self, folder: Path, component: str) -> "Program":
        """Load one component."""
        return Program(torch.export.load(folder / f"{component}.pt2").module())

    def instruction_set(self) -> None:
        """Kernels are built when they are first run."""


class Program:
    """A loaded program."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Wrap an unflattened or exported module."""
        self._module = module

    def __call__(self, inputs: Inputs) -> Tensor:
        """Return the logits ``[B, S, V]``."""
        with torch.inference_mode():
            logits: Tensor = self._module(**inputs)
        return logits
