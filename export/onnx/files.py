"""The format onnx, for ONNX Runtime, and how a model on disk is run there."""

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

import modes_fx.hooks as h
from modes_fx.export.calls import Inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.onnx.lower import Form
from modes_fx.export.onnx.model import save_onnx
from modes_fx.export.onnx.placeholders import OPSET
from modes_fx.export.program import GatedProgram
from modes_fx.policy_file import POLICY_FILE


class Onnx:
    """Writes and loads ``<component>.onnx`` with its weights beside it.

    The model holds standard operators alone. The policy is inside as well, in the metadata, as
    ``modes_policy.json``.
    """

    name = "onnx"
    runs_in = "ONNX Runtime"
    tunable = False
    fixes_images = False
    form: Form = "unrolled"

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Write one component.

        Raises:
            ExportError: an operation has no ONNX form.
        """
        policy = (folder / "policy" / POLICY_FILE).read_text(encoding="utf-8")
        save_onnx(
            gated.program,
            folder / f"{component}.onnx",
            self.form,
            {POLICY_FILE: policy},
            outputs=gated.outputs,
            fixed=inputs if self.fixes_images else None,
        )

    def load(self, folder: Path, component: str) -> "Session":
        """Load one component."""
        return Session(folder / f"{component}.onnx")

    def keeping(self, gated: GatedProgram, folder: Path, component: str) -> "Session | None":
        """Return one component with every expert kept."""
        model = ir.load(folder / f"{component}.onnx")
        for name, value in model.graph.initializers.items():
            if name.rpartition(".")[2] == h.THETA:
                value.const_value = ir.tensor(h.keep_all_theta().numpy(), name=name)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary) / "keeping.onnx"
            ir.save(model, path, external_data="keeping.onnx.data")
            return Session(path)

    def details(self) -> dict[str, str]:
        """Return the opset, and with what the model was checked."""
        return {
            "opset": str(OPSET),
            "form": self.form,
            "ONNX Runtime": version("onnxruntime"),
        }


class Session:
    """A model that ONNX Runtime runs."""

    def __init__(self, path: Path) -> None:
        """Load it, for as many threads as torch has.

        Raises:
            ExportError: ONNX Runtime cannot load it.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no class of their own
            raise ExportError(f"ONNX Runtime cannot load {path.name}: {error}") from error
        self._taken = [given.name for given in self._session.get_inputs()]

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """Return logits and, where it has one, the cache."""
        feeds = {name: inputs[name].numpy() for name in self._taken}
        return [torch.from_numpy(np.asarray(out)) for out in self._session.run(None, feeds)]
