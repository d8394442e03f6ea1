"""The held-out questions as a task: what is asked, and what counts as right."""

import datasets
import yaml

from modes_fx.bench.demo_model import heldout_questions, question_messages
from modes_fx.bench.demo_model.heldout_task import (
    TASK,
    doc_to_messages,
    doc_to_visual,
    process_results,
    write_task,
)


class _Loader(yaml.SafeLoader):
    """Reads lmms-eval's tags as text."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def test_the_task_holds_the_questions_of_the_demo(tmp_path) -> None:
    write_task(tmp_path, 1)
    config = yaml.load((tmp_path / f"{TASK}.yaml").read_text(), _Loader)
    docs = datasets.load_from_disk(config["dataset_path"])[config["test_split"]]
    questions = heldout_questions(1)
    assert [doc["answer"] for doc in docs] == [question.answer for question in questions]
    assert [len(doc["images"]) for doc in docs] == [len(q.images) for q in questions]
    (function,) = {config["process_results"].partition(".")[0]}
    assert (tmp_path / f"{function}.py").exists()


def test_it_asks_as_the_demo_does() -> None:
    question = next(question for question in heldout_questions(1) if question.images)
    doc = {"question": question.question, "answer": "", "images": list(question.images)}
    (asked,), (own,) = doc_to_messages(doc), question_messages(question)
    texts = [[part.get("text") for part in one["content"]] for one in (asked, own)]
    assert texts[0] == texts[1]
    assert asked["content"][0]["url"] is own["content"][0]["image"]
    assert doc_to_visual(doc) == list(question.images)


def test_only_the_expected_answer_is_right() -> None:
    assert process_results({"answer": "7"}, [" 7 "]) == {"accuracy": 1.0}
    assert process_results({"answer": "7"}, ["70"]) == {"accuracy": 0.0}
