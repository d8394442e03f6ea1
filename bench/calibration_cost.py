"""What a calibration costs: ours beside the published procedure, on the demo model.

``python -m modes_fx.bench.calibration_cost --out docs`` writes ``calibration_cost.json`` and
``calibration_cost.md``. The plain procedure takes a pass over all samples for each layer and
modality whose experts are removed, and walks the frontier of a grid for the target. All use the
same samples and the same really skipping model, so that they differ in what they ask of it.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import PreTrainedModel

from modes_fx.bench.demo_model import calibration_questions, load_model, question_messages
from modes_fx.bench.environment import Environment, Section, describe, describe_environment
from modes_fx.bench.timing import Clock, Moment, read_clocks
from modes_fx.calibration import (
    Batch,
    Calibration,
    CalibrationOptions,
    Evaluator,
    Measurement,
    find_policy,
)
from modes_fx.calibration.alpha import Alpha, normalise_alpha
from modes_fx.calibration.curves import quantile_curves
from modes_fx.calibration.data import calibrated_modalities
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.pairs import Shares
from modes_fx.calibration.plane import Plane, require_reachable
from modes_fx.calibration.request import Request
from modes_fx.calibration.session import Session, as_batches, open_session
from modes_fx.calibration.sweep import Grid, frontier_sweep
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import CALIBRATED

PLAIN = "as published"
OURS = {
    "ours, default": CalibrationOptions(),
    "ours, published method": CalibrationOptions(method="modes"),
}
STAGES = ("alpha", "tau")


class StageCost(Section):
    """What one stage of a calibration took.

    Attributes:
        passes: samples that went through the model, as multiples of all samples.
        layer_forwards: MoE layers that a sample went through.
        wall_seconds: that passed.
        cpu_seconds: of processor time.
    """

    passes: float
    layer_forwards: float
    wall_seconds: float
    cpu_seconds: float


class ProcedureCost(Section):
    """One procedure.

    Attributes:
        name: of the procedure.
        stages: by name; the full model's answers, which all need, belong to alpha.
        kl: of the answers, with the thresholds that it found, on the same samples.
        skip_ratio: with them.
    """

    name: str
    stages: dict[str, StageCost]
    kl: float
    skip_ratio: float


class CalibrationCost(Section):
    """All that was measured.

    Attributes:
        environment: where and with what.
        layers: with experts.
        samples: calibrated on.
        target: the skip ratio asked for.
        grid: steps of the published grid, in each direction.
        alpha_difference: the largest difference between ours and the plain procedure's alpha, as a
            share of the largest alpha.
        procedures: in the order of measuring.
    """

    environment: Environment
    layers: int
    samples: int
    target: float
    grid: int
    alpha_difference: float
    procedures: list[ProcedureCost]


@dataclass
class Meter:
    """Reads what an evaluator has done, and the clocks, wherever a stage begins or ends."""

    evaluator: Evaluator
    clock: Clock = read_clocks
    _readings: list[tuple[Moment, float, float]] = field(default_factory=list)

    def read(self) -> None:
        """Take a reading: the end of one stage and the start of the next."""
        ledger = self.evaluator.ledger
        self._readings.append((self.clock(), ledger.passes, ledger.layer_forwards))

    def stages(self) -> dict[str, StageCost]:
        """Return what lies between the readings."""
        costs = {}
        samples = self.evaluator.reference.samples
        pairs = zip(self._readings, self._readings[1:], strict=False)
        for name, (before, after) in zip(STAGES, pairs, strict=True):
            time = after[0].since(before[0])
            costs[name] = StageCost(
                passes=after[1] - before[1],
                layer_forwards=(after[2] - before[2]) / samples,
                wall_seconds=time.wall,
                cpu_seconds=time.cpu,
            )
        return costs


def measure_cost(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    target: float,
    grid: int,
    on_progress: Callable[[str], None] = lambda doing: None,
) -> CalibrationCost:
    """Calibrate by all procedures.

    Args:
        model: not attached; as it was again afterwards.
        batches: the samples.
        target: the skip ratio to find thresholds for.
        grid: steps of the published grid, in each direction.
        on_progress: told what is being done.

    Raises:
        UnreachableTargetError: the target is higher than what can be skipped in the samples.
        MatchError: an MoE layer of the model cannot be rewritten.
    """
    policy = keep_all_policy(model)
    procedures, calibrations = [], []
    for name, options in OURS.items():
        on_progress(name)
        with open_session(model, batches, policy) as session:
            cost, found = _ours(session, name, options, target)
        procedures.append(cost)
        calibrations.append(found)
    on_progress(PLAIN)
    with open_session(model, batches, policy) as session:
        cost, plain = _plain(session, found.shares, target, grid)
        layers, samples = len(session.evaluator.layers), session.evaluator.reference.samples
    largest = max(value for constants in plain.values() for value in constants.values())
    differences = (
        abs(one.alpha[path][name] - value)
        for one, (path, constants) in product(calibrations, plain.items())
        for name, value in constants.items()
    )
    return CalibrationCost(
        environment=describe_environment(),
        layers=layers,
        samples=samples,
        target=target,
        grid=grid,
        alpha_difference=max(differences) / largest,
        procedures=[*procedures, cost],
    )


def _ours(
    session: Session, name: str, options: CalibrationOptions, target: float
) -> tuple[ProcedureCost, Calibration]:
    meter = Meter(session.evaluator)

    def stage(stage_name: str) -> Callable[[float], None]:
        if stage_name == STAGES[1]:
            meter.read()
        return lambda done: None

    meter.read()
    found = find_policy(session, [target], options, stage)
    meter.read()
    measured = found.tuned.chosen[target].measurement
    return _cost(name, meter, measured), found


def _plain(
    session: Session, shares: Shares, target: float, grid: int
) -> tuple[ProcedureCost, Alpha]:
    evaluator = session.evaluator
    modalities = calibrated_modalities(session.tokens)
    meter = Meter(evaluator)
    meter.read()
    evaluator.measure(Request())
    alpha: Alpha = {}
    for path, name in product(evaluator.layers, modalities):
        removed = keep_all_theta()
        removed[CALIBRATED[name]] = torch.inf
        kl = evaluator.measure(Request.of({path: removed})).kl
        alpha.setdefault(path, {})[name] = max(kl, 0.0)
    meter.read()
    draft = evaluator.policy.model_copy(update={"alpha": normalise_alpha(alpha)})
    plane = Plane(evaluator, draft, quantile_curves(shares, draft, modalities))
    cells = Grid(grid, plane.at)
    require_reachable(target, cells.at((grid - 1, grid - 1)).skip_ratio)
    best = frontier_sweep(cells, target)
    assert best is not None
    meter.read()
    return _cost(PLAIN, meter, plane.at(cells.place(best))), alpha


def _cost(name: str, meter: Meter, measured: Measurement) -> ProcedureCost:
    return ProcedureCost(
        name=name, stages=meter.stages(), kl=measured.kl, skip_ratio=measured.skip_ratio
    )


def render(found: CalibrationCost) -> str:
    """Write a measurement as Markdown."""
    lines = [
        "# What a calibration costs",
        "",
        f"Measured by `python -m modes_fx.bench.calibration_cost --out docs`: {found.samples} "
        f"samples of the demo model ({found.layers} MoE layers), one target, {found.target:.0%} "
        f"skipped. {describe(found.environment)}, {found.environment.threads} thread.",
        "",
        f'"{PLAIN}" removes the experts of each layer and modality in a pass of its own, and walks '
        f"the frontier of a grid of {found.grid} x {found.grid} thresholds. These are quantiles of "
        "the shares, as ours are, and run in the same kernels that really skip. Ours runs only the "
        "layers from the removed one on, and searches a few places of the frontier; the default "
        "also chooses what is beside the thresholds. A pass takes all samples through the model, "
        "or through a part of it; layer-forwards are the MoE layers that one sample goes through. "
        "Of the walk every cell counts that it asks for, those that miss the target as well. CPU "
        "seconds leave out what other processes took. KL is on the calibration samples.",
        "",
        f"Both find the same alpha: they differ by at most {found.alpha_difference:.1e} of the "
        "largest one.",
        "",
        "| procedure | stage | passes | layer-forwards | CPU s | wall s | skipped | KL |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found.procedures:
        for name, cost in [*one.stages.items(), ("both", _total(one))]:
            results = ("", "") if name != "both" else (f"{one.skip_ratio:.1%}", f"{one.kl:.5f}")
            cells = (
                one.name,
                name,
                f"{cost.passes:.1f}",
                f"{cost.layer_forwards:.0f}",
                f"{cost.cpu_seconds:.1f}",
                f"{cost.wall_seconds:.1f}",
                *results,
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _total(one: ProcedureCost) -> StageCost:
    costs = one.stages.values()
    return StageCost(
        passes=sum(cost.passes for cost in costs),
        layer_forwards=sum(cost.layer_forwards for cost in costs),
        wall_seconds=sum(cost.wall_seconds for cost in costs),
        cpu_seconds=sum(cost.cpu_seconds for cost in costs),
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder for calibration_cost.json and .md.")],
    samples: Annotated[int, typer.Option(min=14, help="Questions to calibrate on.")] = 60,
    target: Annotated[float, typer.Option(help="The skip ratio.")] = 0.75,
    grid: Annotated[int, typer.Option(min=2, help="Steps of the published grid.")] = 100,
) -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    model, processor = load_model()
    chats = [question_messages(q, with_answer=True) for q in calibration_questions(samples)]
    batches = as_batches(processor, chats, batch_size=30)
    with Console(stderr=True).status("") as status:
        found = measure_cost(model, batches, target, grid, status.update)
    out.mkdir(parents=True, exist_ok=True)
    json = found.model_dump_json(indent=1) + "\n"
    (out / "calibration_cost.json").write_text(json, encoding="utf-8")
    (out / "calibration_cost.md").write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
