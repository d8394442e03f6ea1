"""Evaluate a model twice with lmms-eval: as it is, and with a policy."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from modes_fx.evaluation.plugin import CHAT, SKIPPING

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

    Every answer is kept in ``out/responses`` as soon as it is given, so that a run that was cut off
    goes on where it was. Answers are found again by model, policy, target and question.

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
        arguments |= {
            "policy": str(policy),
            "target": target,
            "digest": policy_digest(policy),
            "compiler": settings.compiler,
        }
    with _answers_kept_at_once():
        found: dict[str, Any] = simple_evaluate(
            model=SKIPPING,
            model_args=arguments,
            tasks=list(settings.tasks),
            task_manager=manager,
            batch_size=settings.batch_size,
            limit=settings.limit,
            use_cache=str(settings.out / "responses"),
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
            fewshot_random_seed=settings.seed,
            verbosity="ERROR",
        )
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
    """Return what tells policies apart: the digest of all files of the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("modes_policy*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _answers_kept_at_once() -> Iterator[None]:
    name = "LMMS_CACHE_CHECKPOINT_INTERVAL"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
