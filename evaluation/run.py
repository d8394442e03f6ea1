"""Evaluate a model twice with lmms-eval: as it is, and with a policy."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from modes_fx.attach import is_attached, pair_counts
from modes_fx.evaluation.plugin import CHAT
from modes_fx.evaluation.skipping import Skipping, transformers_model
from modes_fx.policy_file import POLICY_FILE
from modes_fx.vocabulary import Modality

TASKS = Path(__file__).parent / "tasks"
"""The groups of tasks that this package adds."""


@dataclass(frozen=True)
class Settings:
    """What is evaluated, and how.

    Attributes:
        model: a folder or hub id.
        tasks: names of tasks or groups of lmms-eval.
        out: folder for what is written.
        base: the chat model of lmms-eval that loads the model.
        options: more arguments of that chat model.
        batch_size: of it.
        limit: documents of each task; None: all.
        seed: of everything random.
        task_folders: with tasks of one's own.
        compiler: what compiles the rewritten graphs.
    """

    model: str
    tasks: Sequence[str]
    out: Path
    base: str = CHAT
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    limit: int | None = None
    seed: int = 0
    task_folders: Sequence[Path] = ()
    compiler: str = "inductor"


def evaluate(settings: Settings, policy: Path | None, target: float | None) -> dict[str, Any]:
    """Evaluate a model, freshly loaded, and return what lmms-eval does, samples included.

    Answers are kept in ``out/answers`` as they are given, so that a run that was cut off goes on
    where it was.

    ``skipped`` of the result is the share of pairs that were skipped for new answers.

    Args:
        settings: what is evaluated.
        policy: a folder; None: the model as it is.
        target: one of its targets.

    Raises:
        ValueError: there is no such task, or the model or policy cannot be used.
    """
    manager = TaskManager(
        verbosity="ERROR", include_path=[str(TASKS), *map(str, settings.task_folders)]
    )
    if unknown := [name for name in settings.tasks if name not in manager.all_tasks]:
        raise ValueError(
            f"lmms-eval has no task {unknown[0]!r}: `python -m lmms_eval --tasks list` lists them"
        )
    arguments = {"base": settings.base, "pretrained": settings.model, **settings.options}
    if policy is not None:
        arguments |= {"policy": str(policy), "target": target, "compiler": settings.compiler}
    made = Skipping(
        **arguments,
        batch_size=settings.batch_size,
        journal=str(settings.out / "answers" / f"{_identity(settings, arguments, policy)}.jsonl"),
    )
    model = transformers_model(made)
    found: dict[str, Any] = simple_evaluate(
        model=made,
        tasks=list(settings.tasks),
        task_manager=manager,
        limit=settings.limit,
        random_seed=settings.seed,
        numpy_random_seed=settings.seed,
        torch_random_seed=settings.seed,
        fewshot_random_seed=settings.seed,
        verbosity="ERROR",
    )
    found["skipped"] = _skipped(model)
    torch.compiler.reset()
    name = "baseline" if policy is None else f"target-{target}"
    samples = settings.out / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    for task, some in found["samples"].items():
        lines = (json.dumps(sample, default=str, ensure_ascii=False) for sample in some)
        path = samples / f"{task}.{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def policy_digest(folder: Path) -> str:
    """Return what tells policies apart; the file names the digest of its means."""
    return hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest()


def _identity(settings: Settings, arguments: Mapping[str, Any], policy: Path | None) -> str:
    """Return what tells answers of different models, policies, targets and seeds apart.

    Models are told apart by name: weights of many gigabytes are not read for it.
    """
    parts = {
        **arguments,
        "policy": policy and policy_digest(policy),
        "seed": settings.seed,
        "batch size": settings.batch_size,
        "versions": [version(name) for name in ("lmms-eval", "torch", "transformers")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _skipped(model: torch.nn.Module) -> float | None:
    """Return the share of pairs that were skipped; None without a policy or a new answer."""
    if not is_attached(model):
        return None
    counts = torch.stack(list(pair_counts(model).values()))
    total, kept = counts[:, : Modality.PADDING].sum(dim=(0, 1)).tolist()
    return 1 - kept / total if total else None
