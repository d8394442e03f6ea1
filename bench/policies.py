"""Which policy skips best: calibrations on several draws of questions, on models of two shapes.

``python -m modes_fx.bench.policies --out docs`` writes ``policies.json`` and ``policies.md``. All
methods are fitted on training questions; held-out questions only measure, at the skip ratio that
the default policy reaches there. With ``--quick`` the rules that compare a token's pairs with each
other are left out, which run in the slow unmodified model. Results are added to the folder's, in
place of those of the same model, samples and draw, so that a long measurement can be made in parts.
"""

import json
import warnings
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx.bench.demo_model import (
    calibration_questions,
    heldout_questions,
    load_model,
    question_messages,
)
from modes_fx.bench.demo_model.second import load_second_model
from modes_fx.calibration import (
    CalibrationOptions,
    Evaluator,
    Reference,
    Row,
    baselines,
    compare,
    encode_chats,
    run_calibration,
)
from modes_fx.calibration.baselines import DIEP, MC_MOE, MODES, NAEE, RELATIVE
from modes_fx.calibration.compare import OURS
from modes_fx.evaluation.confidence import paired_difference

MODELS: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "second model (4 layers, top-4 of 16)": load_second_model,
    "demo model (8 layers, top-8 of 32)": load_model,
}
SLOW = (RELATIVE, NAEE, MC_MOE, DIEP)
TARGETS = (0.75, 0.88)
AIM = 0.75
# Demo prompts are so short that special tokens, if they kept all experts, would cap the skip ratio.
OPTIONS = CalibrationOptions(special_tokens="text", batch_size=30)


def measure_policies(
    out: Annotated[Path, typer.Option(help="Folder for policies.json and policies.md.")],
    draws: Annotated[int, typer.Option(help="Calibrations of each model.")] = 3,
    first: Annotated[int, typer.Option(help="The first draw.")] = 0,
    samples: Annotated[int, typer.Option(help="Questions to calibrate on.")] = 1024,
    per_kind: Annotated[int, typer.Option(help="Held-out questions of each kind.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the held-out questions.")] = 1,
    quick: Annotated[bool, typer.Option(help="Leave the slow methods out.")] = False,
    models: Annotated[str, typer.Option(help="Only models with this in their name.")] = "",
) -> None:
    """Calibrate, compare and write the tables."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    out.mkdir(parents=True, exist_ok=True)
    wanted = {name: load for name, load in MODELS.items() if models in name}
    for draw, (name, load) in product(range(first, first + draws), wanted.items()):
        model, processor = load()
        chats = [question_messages(q, with_answer=True) for q in heldout_questions(per_kind, seed)]
        reference = Reference(encode_chats(processor, chats, 60))
        rows = _compared(model, processor, reference, samples, draw, quick)
        measured = {"samples": samples, "questions": len(chats), "quick": quick}
        add_to(
            out, [{"model": name, "draw": draw, **measured, **_fields(row, rows)} for row in rows]
        )
        Console(stderr=True).print(f"{name}, draw {draw}: done")


def add_to(out: Path, found: list[dict[str, Any]]) -> None:
    """Add the rows of one model and draw to a folder's files, in place of earlier ones."""
    path = out / "policies.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = {_calibration(row) for row in found}
    rows = [row for row in kept if _calibration(row) not in new] + found
    rows.sort(key=lambda row: (row["model"], row["target"], row["samples"], row["draw"]))
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / "policies.md").write_text(render(rows), encoding="utf-8")


def render(found: list[dict[str, Any]]) -> str:
    """Write the results of :func:`measure_policies` as Markdown."""
    lines = [
        "# Policies compared",
        "",
        f"Measured by `python -m modes_fx.bench.policies --out docs`: calibrated on "
        f"{_counts(found, 'samples')} training questions a draw, measured on "
        f"{_counts(found, 'questions')} held-out questions, at the skip ratio "
        "that the default policy reaches there. KL is in nats, from the full model, mean over "
        "answer tokens. The ratio is the default policy's KL over the method's, with a 95 % "
        "interval by a paired bootstrap over questions; below 1 the default is better. The last "
        "column is the default's accuracy minus the method's, likewise.",
    ]
    if any(row["quick"] for row in found):
        left_out = ", ".join(SLOW)
        lines += ["", f"Where a draw has no row for {left_out}, `--quick` left them out."]
    lines += ["", "## In short", "", *_summary(found)]
    for model in dict.fromkeys(entry["model"] for entry in found):
        for target in TARGETS:
            lines += ["", f"## {model}, {target:.0%}", "", *_table(found, model, target)]
    return "\n".join(lines) + "\n"


def _calibration(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["model"], row["draw"], row["samples"]


def _summary(found: list[dict[str, Any]]) -> Iterable[str]:
    """What was aimed for, calibration by calibration: whether the best other method is beaten."""
    yield (
        f"Aimed for, against the best other method: a ratio of at most {AIM}, its interval below "
        "1, and an accuracy not below (its interval reaches 0)."
    )
    yield ""
    yield "| model | target | samples, draw | best other | ratio | accuracy | aim met | MoDES |"
    yield "|---|--:|--:|---|--:|--:|---|--:|"
    for key in dict.fromkeys((*_calibration(row), row["target"]) for row in found):
        others = [
            row
            for row in found
            if (*_calibration(row), row["target"]) == key and row["method"] != OURS
        ]
        best = min(others, key=lambda row: row["kl"] if row["reached"] else float("inf"))
        published = next(row for row in others if row["method"] == MODES)
        met = best["ratio"] <= AIM and best["interval"][1] < 1 and best["ahead_interval"][1] >= 0
        model, draw, samples, target = key
        yield (
            f"| {model} | {target:.0%} | {samples}, {draw} | {best['method']} | {_ratio(best)} | "
            f"{100 * best['ahead']:+.1f} | {'yes' if met else 'no'} | {_ratio(published)} |"
        )


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def _counts(found: list[dict[str, Any]], name: str) -> str:
    return " or ".join(map(str, sorted({row[name] for row in found})))


def _table(found: list[dict[str, Any]], model: str, target: float) -> Iterable[str]:
    yield "| method | samples, draw | skipped | text / vision | KL | ratio | accuracy | ahead by |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for entry in found:
        if entry["model"] != model or entry["target"] != target:
            continue
        ahead, (least, most) = entry["ahead"], entry["ahead_interval"]
        text, vision = (entry["by_modality"].get(m, 0.0) for m in ("text", "vision"))
        short = "" if entry["reached"] else " (as far as it goes)"
        yield (
            f"| {entry['method']}{short} | {entry['samples']}, {entry['draw']} | "
            f"{entry['skip_ratio']:.1%} | {text:.1%} / {vision:.1%} | {entry['kl']:.5f} | "
            f"{_ratio(entry)} | {entry['accuracy']:.1%} | "
            f"{100 * ahead:+.1f} [{100 * least:+.1f}, {100 * most:+.1f}] |"
        )


def _compared(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    reference: Reference,
    samples: int,
    draw: int,
    quick: bool,
) -> list[Row]:
    chats = [question_messages(q, with_answer=True) for q in calibration_questions(samples, draw)]
    found = run_calibration(model, processor, chats, TARGETS, options=OPTIONS, progress=False)
    policy = found.policy
    modalities = list(next(iter(policy.alpha.values())))
    top_k = model.config.get_text_config().num_experts_per_tok
    with Evaluator(model, found.reference, policy) as evaluator:
        others = baselines(evaluator, policy, found.shares, modalities, TARGETS, top_k)
    if quick:
        others = {t: [o for o in some if o.name not in SLOW] for t, some in others.items()}
    with Evaluator(model, reference, policy) as evaluator:
        return compare(evaluator, policy, others)


def _fields(row: Row, rows: list[Row]) -> dict[str, Any]:
    ours = next(r for r in rows if r.method == OURS and r.target == row.target)
    correct = (r.measurement.difference.correct.numpy() for r in (ours, row))
    ahead, ahead_interval = paired_difference(*correct)
    return {
        "method": row.method,
        "target": row.target,
        "skip_ratio": row.measurement.skip_ratio,
        "by_modality": row.skip_ratio_by_modality,
        "kl": row.measurement.kl,
        "accuracy": row.measurement.accuracy,
        "ratio": row.ratio,
        "interval": row.interval,
        "ahead": ahead,
        "ahead_interval": ahead_interval,
        "reached": row.reached,
        "note": row.note,
    }


if __name__ == "__main__":
    typer.run(measure_policies)
