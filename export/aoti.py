"""The format aoti: an AOTInductor package with the kernels it calls, which runs without Python.

``lib/`` holds the libraries of the ops and kernels; ``lib/load_order`` says in which order a
program in C++ opens them (``dlopen`` with ``RTLD_GLOBAL``) before it loads the package.
``native/run_package.cpp`` is such a program.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package

from modes_fx.export.calls import Inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.program import GatedProgram, gates, keeping_every_expert
from modes_fx.export.pt2 import Program
from modes_fx.kernels.cpu import kernel_libraries, load_shared
from modes_fx.kernels.cpu.build import BuildError
from modes_fx.kernels.cpu.isa import detect_isa
from modes_fx.kernels.cpu.plan import UnfusableError
from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.means import add_skipped_means_inline
from modes_fx.policy_file import POLICY_FILE

LIBRARIES, LOAD_ORDER = "lib", "load_order"
INSTRUCTION_SET = "instruction set"
IN_THE_LIBRARY = {"modes_fx::gate", "modes_fx::experts"}


class Aoti:
    """Writes and loads ``<component>.aoti.pt2``."""

    name = "aoti"
    runs_in = "AOTInductor"
    tunable = True
    fixes_images = False

    def write(self, gated: GatedProgram, inputs: Inputs, folder: Path, component: str) -> None:
        """Compile one component for this processor, or for this GPU where the model is on one.

        Raises:
            ExportError: a kernel cannot be built, or the program is for another device.
        """
        gated = _with_means_inline(gated)
        _ship_libraries(gated, folder / LIBRARIES)
        _compile(gated, folder / f"{component}.aoti.pt2", _metadata(gated, inputs, folder))

    def load(self, folder: Path, component: str) -> Program:
        """Load one component and the kernels it calls."""
        load_libraries(folder / LIBRARIES)
        return Program(aoti_load_package(str(folder / f"{component}.aoti.pt2")))

    def keeping(self, gated: GatedProgram, folder: Path, component: str) -> Program:
        """Return one component with every expert kept: compiled anew, as thresholds are in code."""
        with TemporaryDirectory() as unpacked, keeping_every_expert(gated.program):
            package = Path(unpacked) / f"{component}.aoti.pt2"
            _compile(_with_means_inline(gated), package, {})
            return Program(aoti_load_package(str(package)))

    def details(self) -> dict[str, str]:
        """Return what the package and its kernels are built for."""
        return {INSTRUCTION_SET: detect_isa().name}


def _with_means_inline(gated: GatedProgram) -> GatedProgram:
    """Return a program that adds means by PyTorch's own operators: our op for it is in Python."""
    inline = {torch.ops.modes_fx.add_skipped_means.default: add_skipped_means_inline}
    return replace(gated, program=gated.program.run_decompositions(inline))


def _compile(gated: GatedProgram, package: Path, metadata: Mapping[str, str]) -> None:
    with torch.inference_mode():
        aoti_compile_and_package(
            gated.program,
            package_path=str(package),
            inductor_configs={"aot_inductor.metadata": metadata},
        )


def _metadata(gated: GatedProgram, inputs: Inputs, folder: Path) -> dict[str, str]:
    """Return what a package says of itself, to programs that read no manifest."""
    policy = (folder / "policy" / POLICY_FILE).read_bytes()
    return {
        "modes_fx_instruction_set": detect_isa().name,
        "modes_fx_policy_sha256": hashlib.sha256(policy).hexdigest(),
        "modes_fx_target": str(gated.target),
        "modes_fx_inputs": " ".join(inputs),
        "modes_fx_outputs": " ".join(gated.outputs),
        "modes_fx_ops_in_python": " ".join(_ops_in_python(gated)),
    }


def _ops_in_python(gated: GatedProgram) -> list[str]:
    """Return the names of our ops that a program calls and the libraries it ships do not have."""
    ops = {
        node.target.name()
        for node in gated.program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "modes_fx"
    }
    return sorted(ops - IN_THE_LIBRARY if _on_cpu(gated) else ops)


def _on_cpu(gated: GatedProgram) -> bool:
    """Return whether a program is for CPUs; for CUDA its kernels are Triton's, called by Python.

    Raises:
        ExportError: it is for neither.
    """
    logits = next(iter(gated.program.graph.output_node().args[0]))
    device = logits.meta["val"].device
    if device.type not in ("cpu", "cuda"):
        raise ExportError(f"packages are for CPUs and CUDA, and the model is on {device}")
    return bool(device.type == "cpu")


def load_libraries(folder: Path) -> None:
    """Load the ops and kernels beside a package, but for those that are loaded already."""
    for name in (folder / LOAD_ORDER).read_text(encoding="utf-8").split():
        load_shared(folder / name)


def _ship_libraries(gated: GatedProgram, folder: Path) -> None:
    """Copy what the gated experts of a program call, each once, with the order to load it in."""
    order = folder / LOAD_ORDER
    folder.mkdir(exist_ok=True)
    names = order.read_text(encoding="utf-8").split() if order.exists() else []
    for body, dtype in _kernels(gated).items() if _on_cpu(gated) else ():
        try:
            libraries = kernel_libraries(Body.from_json(body), dtype, detect_isa())
        except (BuildError, UnfusableError) as error:
            raise ExportError(f"the experts' kernel cannot be built: {error}") from error
        for library in libraries:
            if library.name not in names:
                shutil.copy2(library, folder)
                names.append(library.name)
    order.write_text("\n".join(names) + "\n", encoding="utf-8")


def _kernels(gated: GatedProgram) -> Mapping[str, str]:
    """Return the dtype of each body that a program computes."""
    found = {}
    for node in gates(gated.program):
        x, body = node.args[0], str(node.args[4])
        value = x.meta["val"]  # type: ignore[union-attr]
        found[body] = str(value.dtype).removeprefix("torch.")
    return found
