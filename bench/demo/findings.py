"""What the numbers say, in sentences, whichever way they fall."""

from modes_fx.bench.demo.comparison import METHODS, OURS
from modes_fx.bench.demo.report import DemoReport, Result
from modes_fx.bench.timing import Timing

VERDICTS = ("better than the default", "not told apart from it", "worse")


def findings(report: DemoReport) -> list[str]:
    """Return the report's main results as sentences, the checks first."""
    timing = report.timing
    prefill = {case.name: case.prefill for case in timing.cases}
    decode = {case.name: case.decode for case in timing.cases}
    ours = [case.name for case in timing.cases if case.ours]
    return [
        _tau0(report),
        *(_target(report, target) for target in report.targets),
        _speed("Prefill", prefill, ours, timing.prefill_baseline),
        _speed("Decode", decode, ours, timing.decode_baseline),
    ]


def verdict(result: Result) -> str:
    """Say how a method's accuracy compares with the default's, as far as chance lets one tell.

    Returns:
        One of ``VERDICTS``; empty for the default itself.
    """
    if result.ahead_of_default_interval is None:
        return ""
    lower, upper = result.ahead_of_default_interval
    better, unclear, worse = VERDICTS
    return better if lower > 0 else worse if upper < 0 else unclear


def percent(ratio: float) -> str:
    """Write a ratio as a percentage."""
    return f"{100 * ratio:.1f} %"


def _tau0(report: DemoReport) -> str:
    check = report.tau0
    tokens = "the same" if check.tokens_equal else "other"
    return (
        f"{report.matched} of {report.moe_layers} MoE layers are rewritten. With nothing skipped, "
        f"the compiled model's logits differ from the original's by at most "
        f"{report.tau0_max_error:.1e} of their scale (limit {check.tolerance:.0e}), and it "
        f"generates {tokens} tokens."
    )


def _target(report: DemoReport, target: float) -> str:
    ours = report.result(OURS, target)
    others = [report.result(name, target) for name in METHODS if name != OURS]
    by_modality = ", ".join(
        f"{name} {percent(ratio)}" for name, ratio in ours.skip_ratio_by_modality.items()
    )
    least = min([ours, *others], key=lambda result: result.kl)
    return (
        f"Target {target:.0%}: the default policy skips {percent(ours.skip_ratio)} of the pairs "
        f"({by_modality}) and answers {percent(ours.accuracy)} right, the full model "
        f"{percent(report.full.accuracy)}. In accuracy, {_ranking(others)}. The least KL has "
        f"{least.method}."
    )


def _ranking(others: list[Result]) -> str:
    parts = []
    for words in VERDICTS:
        if names := [result.method for result in others if verdict(result) == words]:
            parts.append(f"{words}: {', '.join(names)}")
    return "; ".join(parts)


def _speed(phase: str, timings: dict[str, Timing], ours: list[str], baseline: str) -> str:
    speedups = ", ".join(f"{timings[name].speedup.median:.2f}x {name}" for name in ours)
    behind = all(timings[name].speedup.median < 1 for name in ours)
    slower = " None of ours is faster at this model's size." if behind else ""
    return f"{phase}, speed over the fastest Hugging Face case ({baseline}): {speedups}.{slower}"
