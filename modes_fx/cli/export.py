"""``modes-fx export`` and ``modes-fx verify``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.models import load_named_model
from modes_fx.cli.probes import SIDES, calls, check_device, on_device
from modes_fx.cli.quiet import quiet_libraries

MODEL_HELP = 'A local folder, the id of a hub repository, or "demo" for the shipped model.'


def export(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    policy: Annotated[str, typer.Option(help="Folder or hub id of a policy for this model.")],
    target: Annotated[float, typer.Option(help="One of the policy's skip ratios.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist yet.")],
    format: Annotated[
        str,
        typer.Option(
            help="pt2: a torch.export program; aoti: a compiled package for this processor; onnx: "
            "for ONNX Runtime; tensorrt: engines of TensorRT-RTX, and the ONNX model for them; "
            "torch_tensorrt: engines built on the GPU they are for, experts as plugins."
        ),
    ] = "pt2",
    components: Annotated[
        list[str] | None,
        typer.Option(
            help="What to export: text and image, whole calls, by default what the model takes; "
            "prefill and decode, which generate text with a cache."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: float32 or bfloat16; as stored by default.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="To export for: cpu, or for pt2, aoti and torch_tensorrt cuda.")
    ] = "cpu",
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="For tensorrt: of the GPUs; by default four.")
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Also where MoE layers stay that compute every expert."
        ),
    ] = False,
    tunable: Annotated[
        bool,
        typer.Option("--tunable", help="Take thresholds as an input, theta; for pt2 and aoti."),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code of the repository.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Write a model with a policy's thresholds inside, and compare it with the model.

    Example: modes-fx export demo --policy my-policy --target 0.75 --out my-artifact
    """
    import torch

    from modes_fx import SkipPolicy
    from modes_fx.export import export as export_model
    from modes_fx.export.formats import find_format

    quiet_libraries()
    writer = find_format(format, compute_capabilities=compute_capability or ())
    check_device(device)
    with Console(stderr=True).status("loading the model") as status:
        loaded, processor = load_named_model(model, trust_remote_code=trust_remote_code)
        if dtype is not None:
            loaded = loaded.to(getattr(torch, dtype))
        inputs = {
            name: on_device(some[0], device)
            for name, some in calls(loaded, processor, components).items()
        }
        loaded = loaded.to(device)
        status.update("exporting, which takes a minute or more for each component")
        manifest = export_model(
            loaded,
            SkipPolicy.from_pretrained(policy),
            target,
            inputs,
            out,
            format=writer,
            name=model,
            allow_partial=allow_partial,
            thresholds_as_inputs=tunable,
        )
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    table = Table("component", "layers", "error", "time at the target")
    for name, component in manifest.components.items():
        ratio = component.time_ratio
        table.add_row(
            name,
            f"{component.rewritten} of {component.layers}",
            f"{component.max_error:.1e}",
            "" if ratio is None else f"{ratio:.2f} of keeping every expert",
        )
    console = Console()
    console.print(table)
    console.print(f"{manifest.format} written to {out}; check it with: modes-fx verify {out}")


def verify(
    folder: Annotated[Path, typer.Argument(help="An artifact that modes-fx export wrote.")],
    model: Annotated[
        str | None, typer.Option(help="The model; by default where it was exported from.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code of the repository.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Compare an artifact with its model on inputs of other sizes; exit with 1 where it is off.

    Example: modes-fx verify my-artifact
    """
    import json

    import torch

    from modes_fx.export import Manifest
    from modes_fx.export import verify as verify_artifact

    quiet_libraries()
    manifest = Manifest.load(folder)
    check_device(manifest.device)
    with Console(stderr=True).status("loading the model"):
        name = model or manifest.model
        loaded, processor = load_named_model(name, trust_remote_code=trust_remote_code)
        loaded = loaded.to(getattr(torch, manifest.dtype))
        sides = SIDES[:1] * 2 if manifest.fixes_images else SIDES
        inputs = {
            name: [on_device(call, manifest.device) for call in some[1:]]
            for name, some in calls(loaded, processor, list(manifest.components), sides).items()
        }
        checks = verify_artifact(folder, loaded.to(manifest.device), inputs)
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table("component", "target", "input_ids", "error", "agrees")
        for check in checks:
            shape = " x ".join(map(str, check.shapes["input_ids"]))
            table.add_row(
                check.component,
                f"{check.target:g}",
                shape,
                f"{check.error:.1e}",
                "yes" if check.agrees else "NO",
            )
        Console().print(table)
    if not all(check.agrees for check in checks):
        raise typer.Exit(FAILED_CHECK)
