"""Which models can be exported as what: every format, on models of several types.

``python -m modes_fx.bench.export.matrix --out docs`` writes ``export-matrix.md`` and ``.json``.
Cells are added to the folder's, in place of earlier ones, so that it can be measured in parts.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.attach import find_expert_modules
from modes_fx.bench.coverage.inputs import takes_images, tiny_inputs
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.bench.demo_model import load_model
from modes_fx.bench.environment import describe, describe_environment
from modes_fx.calibration import preset_policy
from modes_fx.cli.probes import calls
from modes_fx.export import ExportError, export, verify
from modes_fx.export.calls import COMPONENTS, DECODE, PREFILL, TEXT
from modes_fx.policy import SkipPolicy

DEMO = "demo"
MODELS = (DEMO, "qwen3_vl_moe", "internvl+qwen3_moe", "gpt_oss", "deepseek_v3")
FORMATS = ("pt2", "aoti", "onnx", "tensorrt")
KEEP_ALL, SKIP = 0.0, 0.75
_OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")

Call = dict[str, Tensor]


class Cell(BaseModel):
    """One component of one model in one format.

    Attributes:
        model: a name of ``MODELS``.
        component: of it.
        format: of the artifact.
        target: 0 or the skip ratio that its thresholds are for.
        error: the largest difference from the model, as a share of the largest value, on the inputs
            it was exported with and on others; None where it could not be exported.
        megabytes: of the artifact.
        seconds: what the export took, with its check.
        reason: why there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    component: str
    format: str
    target: float
    error: float | None = None
    megabytes: float = 0.0
    seconds: float = 0.0
    reason: str = ""


class Subject(NamedTuple):
    """A model with what it is exported for: by component, a first call and another in new sizes."""

    model: PreTrainedModel
    policy: SkipPolicy
    calls: Mapping[str, Sequence[Call]]


def subject(name: str) -> Subject:
    """Build a model, a policy that skips in all its layers, and calls."""
    model: Any
    if name == DEMO:
        model, processor = load_model()
        components: tuple[str, ...] = COMPONENTS
        given = calls(model, processor, components)
    else:
        model = tiny_model(name)
        images = takes_images(model)
        components = COMPONENTS if images else (TEXT, PREFILL, DECODE)
        given = {one: _tiny_calls(model, images and one != TEXT) for one in components}
    preset = preset_policy(model, targets=[SKIP])
    tau: dict[Any, Any] = {KEEP_ALL: {"text": 0.0, "vision": 0.0}, **preset.tau}
    alpha = {path: preset.alpha[path] for path in find_expert_modules(model)}
    return Subject(model, SkipPolicy(alpha, tau, model_id=name), given)


def _tiny_calls(model: PreTrainedModel, image: bool) -> list[Call]:
    prompt = tiny_inputs(model, image=image).prefill
    # How many images there are is written into most programs.
    return [_batch(prompt, 2, 0), _batch(prompt, 2 if image else 3, 4)]


def _batch(prompt: Mapping[str, Tensor], copies: int, more: int) -> Call:
    """Return a prompt several times, with some of its last tokens once more."""
    return {
        name: torch.cat([value, value[:, value.shape[1] - more :]], 1).repeat(copies, 1)
        if name in _OF_TOKENS
        else torch.cat([value] * copies)
        for name, value in prompt.items()
    }


def measure(name: str, given: Subject, component: str, format: str, target: float) -> Cell:
    """Export one component, and verify it on inputs of other sizes."""
    cell = Cell(model=name, component=component, format=format, target=target)
    first, *others = given.calls[component]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        started = time.perf_counter()
        try:
            manifest = export(
                given.model, given.policy, target, {component: first}, folder, format=format
            )
            seconds = time.perf_counter() - started
            checks = verify(folder, given.model, {component: others})
        except ExportError as error:
            return cell.model_copy(update={"reason": " ".join(str(error).split())[:300]})
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    errors = [manifest.components[component].max_error, *(check.error for check in checks)]
    found = {"error": max(errors), "megabytes": sum(sizes) / 1e6, "seconds": seconds}
    return cell.model_copy(update=found)


def sweep(models: Sequence[str], formats: Sequence[str]) -> Iterator[Cell]:
    """Measure everything, one component after another."""
    for name in models:
        given = subject(name)
        for component in given.calls:
            for format in formats:
                for target in (KEEP_ALL, SKIP):
                    yield measure(name, given, component, format, target)


def render(cells: Sequence[Cell], formats: Sequence[str]) -> str:
    """Return the page."""
    lines = [
        "# What can be exported",
        "",
        f"Written by `make export-matrix`. {describe(describe_environment())}, float32.",
        "",
        "Each cell: the largest difference from the model as a share of the largest output, on the "
        "inputs that it was exported with and on others of new sizes; the artifact's size; the "
        "seconds to export and check it. Thresholds are those that keep all and those for "
        "75 %: the larger error is named. An empty cell was not measured. "
        "Seconds are wall time, on a machine that may have had other work. "
        "`tensorrt` is what ONNX Runtime computes with the blocked form, for images of one size "
        "where the model is told sizes; engines were built for "
        "compute capabilities 8.0, 8.6, 8.9 and 12.0 and have not been run. All but `demo` are "
        "tiny and random models.",
        "",
        f"| model | component | {' | '.join(formats)} |",
        f"|---|---|{'---|' * len(formats)}",
    ]
    reasons: list[str] = []
    for name, component in dict.fromkeys((cell.model, cell.component) for cell in cells):
        row = []
        for format in formats:
            some = [
                cell
                for cell in cells
                if (cell.model, cell.component, cell.format) == (name, component, format)
            ]
            row.append(_cell(some, reasons))
        lines.append(f"| {name} | {component} | {' | '.join(row)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines).rstrip() + "\n"


def _cell(cells: Sequence[Cell], reasons: list[str]) -> str:
    if not cells:
        return ""
    failed = next((cell for cell in cells if cell.error is None), None)
    if failed is not None:
        if failed.reason not in reasons:
            reasons.append(failed.reason)
        return f"no ({reasons.index(failed.reason) + 1})"
    error = max(cell.error or 0.0 for cell in cells)
    targets = {cell.target for cell in cells}
    only = "" if len(targets) > 1 else f", at {targets.pop():.0%} only"
    megabytes, seconds = (max(getattr(c, key) for c in cells) for key in ("megabytes", "seconds"))
    return f"{error:.0e}, {megabytes:.1f} MB, {seconds:.0f} s{only}"


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the page.")],
    models: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(MODELS),
    formats: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(FORMATS),
) -> None:
    """Export every component of every model in every format."""
    console = Console(stderr=True)
    for cell in sweep(models.split(","), formats.split(",")):
        found = cell.reason or f"{cell.error:.1e}"
        console.print(f"{cell.model} {cell.component} {cell.format} at {cell.target}: {found}")
        add_to(out, cell)


def add_to(out: Path, cell: Cell) -> None:
    """Add a cell to a folder's files, in place of an earlier one."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "export-matrix.json"
    known = TypeAdapter(list[Cell])
    cells = known.validate_json(path.read_bytes()) if path.exists() else []
    cells = [one for one in cells if _place(one) != _place(cell)] + [cell]
    cells.sort(key=lambda one: (MODELS.index(one.model), COMPONENTS.index(one.component)))
    (out / "export-matrix.md").write_text(render(cells, FORMATS), encoding="utf-8")
    dumped = "[\n" + ",\n".join(one.model_dump_json() for one in cells) + "\n]\n"
    path.write_text(dumped, encoding="utf-8")


def _place(cell: Cell) -> tuple[str, str, str, float]:
    return cell.model, cell.component, cell.format, cell.target


if __name__ == "__main__":
    typer.run(main)
