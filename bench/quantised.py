"""How well skipping goes with quantised experts: skip ratios times bits, on the demo model.

``python -m modes_fx.bench.quantised --policy out/demo/policy --out docs`` writes
``quantised.json`` and the table ``quantised_table.md``. The policy is one calibrated on the model
as it is; experts are quantised afterwards, and every cell runs through the compiled path.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from modes_fx import SkipPolicy
from modes_fx.attach import find_expert_modules
from modes_fx.bench.demo_model import (
    calibration_questions,
    encode,
    heldout_questions,
    load_model,
    question_messages,
)
from modes_fx.calibration import Evaluator, Measurement, Reference, encode_chats, measure_policy
from modes_fx.calibration.request import Request
from modes_fx.evaluation.confidence import paired_difference
from modes_fx.hooks import keep_all_theta
from modes_fx.quantise import least_used, quantise_experts

BITS = ("16", "8", "4", "mixed")
BATCH_SIZE = 60
COUNTED_QUESTIONS = 60

Load = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]


def measure_quantised(
    policy: Annotated[Path, typer.Option(help="Calibrated for the demo model, by modes-fx demo.")],
    out: Annotated[Path, typer.Option(help="Folder for quantised.json and quantised_table.md.")],
    per_kind: Annotated[int, typer.Option(help="Held-out questions of each kind.")] = 50,
    bits: Annotated[
        list[str] | None, typer.Option(help="Of the experts: 16, 8, 4, mixed. Default: all.")
    ] = None,
) -> None:
    """Measure every cell and write the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)

    def write(found: dict[str, Any]) -> None:
        (out / "quantised.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "quantised_table.md").write_text(render(found))
        console.print(f"{len(found['rows'])} rows of {out / 'quantised_table.md'} are written")

    compare_bits(SkipPolicy.from_pretrained(policy), per_kind, load_model, write, bits or BITS)


def compare_bits(
    policy: SkipPolicy,
    per_kind: int,
    load: Load,
    write: Callable[[dict[str, Any]], None],
    of_bits: Sequence[str] = BITS,
) -> dict[str, Any]:
    """Measure every target of a policy, and skipping nothing, with experts of every number of bits.

    Args:
        policy: calibrated for the model.
        per_kind: held-out questions of each kind.
        load: makes a fresh copy of the model, with its processor.
        write: called with what there is whenever experts of some bits are done.
        of_bits: some of ``BITS``, the 16 that changes are relative to first.

    Returns:
        JSON-ready: ``questions`` and ``rows``, one for each cell.

    Raises:
        ValueError: other bits, or 16 is not the first.
        MatchError: an MoE layer could not be rewritten.
    """
    if unknown := set(of_bits) - set(BITS):
        raise ValueError(f"experts have {', '.join(BITS)} bits, not {', '.join(sorted(unknown))}")
    if of_bits[0] != BITS[0]:
        raise ValueError(f"changes are relative to {BITS[0]} bits: name them first")
    model, processor = load()
    questions = heldout_questions(per_kind)
    chats = [question_messages(question, with_answer=True) for question in questions]
    reference = Reference.record(model, encode_chats(processor, chats, BATCH_SIZE))
    choices = count_choices(model, processor)
    rows: list[dict[str, Any]] = []
    full: Tensor | None = None
    for bits in of_bits:
        model, _ = load()
        size = _quantise(model, bits, choices)
        for target, measured in _measure(model, reference, policy).items():
            correct = measured.difference.correct
            full = correct if full is None else full
            change, interval = paired_difference(correct.numpy(), full.numpy())
            rows.append(
                {
                    "bits": bits,
                    "target": target,
                    "skip_ratio": measured.skip_ratio,
                    "accuracy": float(correct.double().mean()),
                    "change": change,
                    "change_interval": interval,
                    "kl": measured.kl,
                    "expert_bytes": size,
                }
            )
        found = {"questions": len(questions), "torch": torch.__version__, "rows": rows}
        write(found)
    return found


def count_choices(
    model: PreTrainedModel, processor: ProcessorMixin, questions: int = COUNTED_QUESTIONS
) -> dict[str, Tensor]:
    """Count how often calibration questions choose each expert: for each layer path ``[E]``."""
    counts: dict[str, Tensor] = {}

    def counting(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def count(module: nn.Module, args: tuple[Any, ...]) -> None:
            experts = int(module.num_experts)  # type: ignore[arg-type]
            (index,) = (a for a in args if isinstance(a, Tensor) and not a.is_floating_point())
            seen = torch.bincount(index.flatten(), minlength=experts)
            counts[path] = counts.get(path, torch.zeros(experts, dtype=torch.long)) + seen

        return count

    layers = find_expert_modules(model)
    handles = [layer.register_forward_pre_hook(counting(path)) for path, layer in layers.items()]
    try:
        with torch.inference_mode():
            model(**encode(processor, calibration_questions(questions)))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def render(found: Mapping[str, Any]) -> str:
    """Write what :func:`compare_bits` returned as Markdown."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield "| bits of the experts | MB | target | skipped | accuracy | change | KL |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in found["rows"]:
        low, high = row["change_interval"]
        yield (
            f"| {row['bits']} | {row['expert_bytes'] / 1e6:.1f} | {row['target']:.0%} | "
            f"{row['skip_ratio']:.1%} | {row['accuracy']:.1%} | {100 * row['change']:+.1f} "
            f"[{100 * low:+.1f}, {100 * high:+.1f}] | {row['kl']:.4f} |"
        )


def _quantise(model: PreTrainedModel, bits: str, choices: Mapping[str, Tensor]) -> int:
    """Quantise the experts; return the bytes that their weights take."""
    if bits == "16":
        layers = find_expert_modules(model).values()
        # The checkpoint holds bfloat16; it is widened when it is loaded.
        return sum(2 * p.numel() for layer in layers for p in layer.parameters() if p.dim() == 3)
    if bits == "mixed":
        return quantise_experts(model, least_used(choices)).bytes_after
    return quantise_experts(model, 8 if bits == "8" else 4).bytes_after


def _measure(
    model: PreTrainedModel, reference: Reference, policy: SkipPolicy
) -> dict[float, Measurement]:
    keep_all = Request.of(dict.fromkeys(policy.alpha, keep_all_theta()))
    with Evaluator(model, reference, policy) as evaluator:
        measured = {0.0: evaluator.measure(keep_all)}
        return measured | {t: measure_policy(evaluator, policy, t) for t in policy.targets}


if __name__ == "__main__":
    typer.run(measure_quantised)
