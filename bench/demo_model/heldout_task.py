"""The held-out questions as a task of lmms-eval, which needs no network."""

from pathlib import Path
from typing import Any

import datasets

from modes_fx.bench.demo_model.questions import heldout_questions

TASK = "demo_heldout"

_YAML = """task: {task}
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_messages: !function utils.doc_to_messages
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 6
  do_sample: false
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""
_UTILS = """from modes_fx.bench.demo_model.heldout_task import (
    doc_to_messages,
    doc_to_visual,
    process_results,
)
"""


def write_task(folder: Path, n_per_kind: int) -> Path:
    """Write the questions and what lmms-eval needs to ask them.

    Args:
        folder: to write into; ``TaskManager(include_path=...)`` takes it.
        n_per_kind: questions of each kind.

    Returns:
        ``folder``.
    """
    questions = heldout_questions(n_per_kind)
    rows = datasets.Dataset.from_dict(
        {
            "question": [question.question for question in questions],
            "answer": [question.answer for question in questions],
            "images": [list(question.images) for question in questions],
        },
        features=datasets.Features(
            {
                "question": datasets.Value("string"),
                "answer": datasets.Value("string"),
                "images": datasets.List(datasets.Image()),
            }
        ),
    )
    data = folder.resolve() / "data"
    datasets.DatasetDict({"test": rows}).save_to_disk(data)
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, data=data), encoding="utf-8")
    (folder / "utils.py").write_text(_UTILS, encoding="utf-8")
    return folder


def doc_to_messages(doc: dict[str, Any], options: object = None) -> list[dict[str, Any]]:
    """Return a question as a chat, images first, as the model was trained on."""
    images = [{"type": "image", "url": image} for image in doc["images"]]
    content = [*images, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Return the images of a question."""
    return list(doc["images"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1 where the answer is the expected one, and 0 elsewhere."""
    return {"accuracy": float(results[0].strip() == doc["answer"])}
