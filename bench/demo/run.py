"""The demo from end to end: explain, check, calibrate, evaluate, time, report."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx import ExplainReport, MatchError, SkipPolicy, explain
from modes_fx.bench.demo.comparison import (
    MODES,
    OURS,
    WITHOUT_ALPHA,
    Comparison,
    compare_methods,
)
from modes_fx.bench.demo.generation import Load, require_compiler, time_generation
from modes_fx.bench.demo.policy import calibrate_demo
from modes_fx.bench.demo.render import write_report
from modes_fx.bench.demo.report import CalibrationSection, DemoReport, Tau0Check, TimingSection
from modes_fx.bench.demo.steps import Steps
from modes_fx.bench.demo.tau0 import check_tau0, questions_by_input
from modes_fx.bench.demo_model import (
    calibration_questions,
    encode,
    heldout_questions,
    load_model,
)
from modes_fx.bench.environment import describe_environment


@dataclass(frozen=True)
class Size:
    """How much the demo measures.

    Attributes:
        calibration: questions to calibrate on.
        heldout_per_kind: questions of each kind to evaluate on.
        rounds: of timing.
    """

    calibration: int
    heldout_per_kind: int
    rounds: int


FULL = Size(calibration=120, heldout_per_kind=50, rounds=15)
QUICK = Size(calibration=45, heldout_per_kind=8, rounds=5)


def run_demo(
    out: Path, console: Console, *, quick: bool = False, load: Load = load_model
) -> DemoReport:
    """Run every step and write the report.

    Args:
        out: the folder for the report and the policy; made if there is none.
        console: where progress is shown.
        quick: measure less.
        load: makes a fresh copy of the model, with its processor.

    Raises:
        MatchError: an MoE layer of the model could not be rewritten, or there is no C++ compiler.
    """
    require_compiler()
    steps = Steps(console, total=8)
    size = QUICK if quick else FULL
    with _one_thread():
        with steps.step("load", "Load the model"):
            model, processor = load()
        explained = _explain(steps, model, processor)
        tau0 = _check_tau0(steps, model, processor, load)
        policies, calibration = _calibrate(steps, model, processor, size, out)
        top_k = explained.layers[0].top_k
        compared = _compare(steps, model, processor, policies, size, top_k)
        timing = _time(steps, load, policies[OURS], size)
        environment = describe_environment()
    report = DemoReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        environment=environment,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        moe_layers=len(explained.layers),
        matched=explained.matched,
        layers=list(explained.layers),
        graphs=explained.graphs,
        graph_breaks=list(explained.graph_breaks),
        tau0_max_error=max(tau0.errors.values()),
        tau0=tau0,
        calibration=calibration,
        full=compared.full,
        results=compared.results,
        timing=timing,
        seconds=steps.seconds,
        failures=find_failures(tau0, timing),
    )
    write_report(report, out)
    return report


def find_failures(tau0: Tau0Check, timing: TimingSection) -> list[str]:
    """Say in words which checks failed."""
    failures = [
        f"tau 0, {name}: the compiled model is {error:.1e} of the logits' scale away from the "
        f"unmodified one, more than {tau0.tolerance:.0e}"
        for name, error in tau0.errors.items()
        if not error <= tau0.tolerance
    ]
    for compiler, equal in (("eager", tau0.tokens_equal), ("inductor", timing.tokens_equal)):
        if not equal:
            failures.append(f"tau 0, compiled with {compiler}: generate gave other tokens")
    return failures


@contextmanager
def _one_thread() -> Iterator[None]:
    """The demo model's operations are too small to share: on several threads they take longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _explain(steps: Steps, model: PreTrainedModel, processor: ProcessorMixin) -> ExplainReport:
    with steps.step("explain", "Find the MoE layers in a call with images and text"):
        inputs = encode(processor, questions_by_input()["padded batch"])
        explained = explain(model, **inputs)
    if left := [layer for layer in explained.layers if layer.status != "rewritten"]:
        raise MatchError(
            f"{len(left)} of {len(explained.layers)} MoE layers of the demo model are not "
            f"rewritten; the first is {left[0].path}: {left[0].reason}. "
            "Run `modes-fx explain demo` for all of them"
        )
    layer = explained.layers[0]
    steps.say(
        f"{explained.matched} of {len(explained.layers)} MoE layers rewritten "
        f"({layer.num_experts} experts, top-{layer.top_k}), in {explained.graphs} graphs"
    )
    return explained


def _check_tau0(
    steps: Steps, model: PreTrainedModel, processor: ProcessorMixin, load: Load
) -> Tau0Check:
    doing = "Check that nothing changes when nothing is skipped"
    with steps.step("tau0_check", doing) as advance:
        check = check_tau0(model, load()[0], processor, advance)
    same = "the same" if check.tokens_equal else "OTHER"
    steps.say(f"largest error {max(check.errors.values()):.1e}; {same} tokens are generated")
    return check


def _calibrate(
    steps: Steps, model: PreTrainedModel, processor: ProcessorMixin, size: Size, out: Path
) -> tuple[dict[str, SkipPolicy], CalibrationSection]:
    questions = calibration_questions(size.calibration)
    with steps.step("calibrate", "Calibrate a policy", bar=False):
        ours, section = calibrate_demo(model, processor, questions, out / "policy")
    steps.say(f"policy saved to {section.policy}")
    with steps.step("calibrate_modes", "Calibrate one as published", bar=False):
        modes, published = calibrate_demo(
            model, processor, questions, out / "policy_modes", method="modes"
        )
    steps.say(f"policy saved to {published.policy}")
    with steps.step("calibrate_without_alpha", "Calibrate one without alpha", bar=False):
        plain, other = calibrate_demo(
            model,
            processor,
            questions,
            out / "policy_without_alpha",
            method="modes",
            alpha_exponent=0.0,
        )
    steps.say(f"policy saved to {other.policy}")
    return {OURS: ours, MODES: modes, WITHOUT_ALPHA: plain}, section


def _compare(
    steps: Steps,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    policies: Mapping[str, SkipPolicy],
    size: Size,
    top_k: int,
) -> Comparison:
    questions = heldout_questions(size.heldout_per_kind)
    doing = f"Answer {len(questions)} held-out questions with every method"
    with steps.step("evaluate", doing) as advance:
        compared = compare_methods(model, processor, policies, questions, top_k, advance)
    steps.say(f"full model: {compared.full.accuracy:.1%} right")
    return compared


def _time(steps: Steps, load: Load, policy: SkipPolicy, size: Size) -> TimingSection:
    with steps.step("time", "Compile with inductor, and time prefill and decode") as advance:
        return time_generation(load, policy, size.rounds, advance)
