"""``modes-fx explain``."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modes_fx.cli.errors import FAILED_CHECK
from modes_fx.cli.models import Probes, first_line, load_named_model, make_probes
from modes_fx.cli.quiet import quiet_libraries
from modes_fx.explain import ExplainReport, describe_router
from modes_fx.explain import explain as explain_model
from modes_fx.passes.report import LayerReport


class Group(NamedTuple):
    """Layers that a table shows in one row.

    Attributes:
        paths: of all of them, in short.
        common: one of them, with the largest error found.
    """

    paths: str
    common: LayerReport


def explain(
    model: Annotated[
        str,
        typer.Argument(
            help='A local folder, the id of a hub repository, or "demo" for the shipped model.'
        ),
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 unless every MoE layer is rewritten.")
    ] = False,
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only",
            help="Read no weights: layers that match are reported as unverified, and --strict "
            "takes them.",
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code of the repository.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on standard output.")
    ] = False,
) -> None:
    """Show which MoE layers of a model modes-fx rewrites, which not, and why.

    Loads the model, calls it once on a short text, and once on a text with an image where its
    processor takes images, and reports what became of each layer. Nothing is calibrated or saved.
    With --config-only the model is built from its config.json alone, which is quick however large
    it is.

    Example: modes-fx explain demo
    """
    quiet_libraries()
    console = Console(stderr=True)
    with console.status(f"Loading {model}"):
        loaded, processor = load_named_model(
            model, trust_remote_code=trust_remote_code, config_only=config_only
        )
        probes = make_probes(loaded, processor)
    reports = {}
    for name, inputs in probes.inputs.items():
        with console.status(f"Capturing a call with {name}"):
            try:
                reports[name] = explain_model(loaded, **inputs)
            except RuntimeError as error:
                if not config_only:
                    raise
                probes.notes.append(_needs_weights(name, error))
    if not reports:
        raise ValueError(f"--config-only is not enough for {model}: {'; '.join(probes.notes)}")
    if as_json:
        typer.echo(_as_json(model, reports, probes))
    else:
        _print(reports, probes, Console())
    accepted = ("rewritten", "unverified") if config_only else ("rewritten",)
    layers = [layer for report in reports.values() for layer in report.layers]
    if strict and any(layer.status not in accepted for layer in layers):
        raise typer.Exit(FAILED_CHECK)


def _needs_weights(name: str, error: Exception) -> str:
    return (
        f"a call with {name} reads values that a model without weights does not have "
        f"({first_line(error)}): run without --config-only to try it"
    )


def _as_json(model: str, reports: dict[str, ExplainReport], probes: Probes) -> str:
    inputs = {name: json.loads(report.to_json()) for name, report in reports.items()}
    return json.dumps({"model": model, "inputs": inputs, "notes": probes.notes}, indent=2)


def _print(reports: dict[str, ExplainReport], probes: Probes, console: Console) -> None:
    for name, report in reports.items():
        groups = _group_alike(report.layers)
        console.print(_table(name, report, groups))
        notes = [note for group in groups for note in _notes(group)]
        notes += [f"graph break: {reason}" for reason in report.graph_breaks]
        for note in notes:
            console.print(note, markup=False, highlight=False)
    for note in probes.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def _notes(group: Group) -> list[str]:
    layer = group.common
    notes = [f"{group.paths}: {layer.reason}"] if layer.reason else []
    if layer.nearest_miss:
        notes.append(f"{group.paths}: {layer.nearest_miss}")
    if layer.num_experts:
        weights = f", weights {layer.weights}" if layer.weights else ""
        notes.append(f"{group.paths}: router {describe_router(layer)}, body {layer.body}{weights}")
    return notes


def _table(name: str, report: ExplainReport, groups: Sequence[Group]) -> Table:
    table = Table(
        title=f"A call with {name}",
        caption=report.summary(),
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("MoE layers", overflow="fold", min_width=24)
    for heading in ("status", "form", "experts", "H x I", "error"):
        table.add_column(heading)
    for group in groups:
        layer = group.common
        table.add_row(
            escape(group.paths),
            layer.status,
            layer.form,
            f"{layer.num_experts}, top-{layer.top_k}" if layer.num_experts else "",
            f"{layer.hidden_size} x {layer.intermediate_size}" if layer.num_experts else "",
            "" if layer.max_error is None else f"{layer.max_error:.1e}",
        )
    return table


def _group_alike(layers: Sequence[LayerReport]) -> list[Group]:
    """Group layers that differ in nothing but their place and the error found; keep the largest."""
    groups: dict[LayerReport, list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault(_placeless(layer), []).append(layer)
    return [
        Group(
            paths=collapse([layer.path for layer in alike]),
            common=replace(
                max(alike, key=lambda layer: layer.max_error or 0.0),
                router_weight=collapse([layer.router_weight for layer in alike]),
            ),
        )
        for alike in groups.values()
    ]


def _placeless(layer: LayerReport) -> LayerReport:
    """Return a layer's report without what tells its place, and without the error found."""
    layer = replace(layer, path="", router_weight="", max_error=None)
    if layer.nearest_miss is None:
        return layer
    miss = layer.nearest_miss
    reason = layer.reason.removesuffix(f" (node {miss.node})")
    return replace(layer, reason=reason, nearest_miss=replace(miss, node=""))


def collapse(paths: Sequence[str]) -> str:
    """Write paths that differ in one number as one, ``layers.[0-7].mlp``; list others."""
    paths = list(dict.fromkeys(paths))
    split = [path.split(".") for path in paths]
    if len({len(parts) for parts in split}) > 1:
        return ", ".join(paths)
    columns = list(zip(*split, strict=True))
    varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) != 1 or not all(part.isdecimal() for part in columns[varying[0]]):
        return ", ".join(paths)
    common = [column[0] for column in columns]
    common[varying[0]] = f"[{_ranges(sorted(map(int, columns[varying[0]])))}]"
    return ".".join(common)


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: 0-3,5."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, ends)) for ends in ranges)
