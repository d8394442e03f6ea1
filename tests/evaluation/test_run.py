"""Evaluations by lmms-eval: answers are kept, and found again only for the same policy."""

import json

import pytest

pytest.importorskip("lmms_eval")

from transformers import AutoModelForImageTextToText

from modes_fx.bench.demo_model import load_model
from modes_fx.bench.demo_model.heldout_task import TASK, write_task
from modes_fx.calibration import preset_policy
from modes_fx.evaluation.run import TASKS, Settings, evaluate, policy_digest
from tests.tiny import save_untrained_demo


def test_the_papers_group_names_tasks_that_lmms_eval_has() -> None:
    import yaml
    from lmms_eval.tasks import TaskManager

    group = yaml.safe_load((TASKS / "modes_paper.yaml").read_text(encoding="utf-8"))
    assert len(group["task"]) == 13
    known = TaskManager(verbosity="ERROR", include_path=str(TASKS)).all_tasks
    assert set(group["task"]) | {"modes_paper"} <= set(known)


def test_an_unknown_task_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="lmms-eval has no task 'no_such_task'"):
        evaluate(Settings("nowhere", ["no_such_task"], tmp_path), None, None)


def test_a_policy_is_told_by_what_it_holds(tmp_path) -> None:
    policy = preset_policy(load_model()[0], targets=[0.75])
    other = preset_policy(load_model()[0], targets=[0.5])
    for name, one in (("a", policy), ("b", policy), ("c", other)):
        one.save_pretrained(tmp_path / name)
    a, b, c = (policy_digest(tmp_path / name) for name in "abc")
    assert a == b != c


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_run_takes_the_answers_of_the_first(tmp_path, monkeypatch) -> None:
    checkpoint = save_untrained_demo(tmp_path / "checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    preset_policy(model, targets=[0.75]).save_pretrained(tmp_path / "policy")
    (tmp_path / "task").mkdir()
    tasks = write_task(tmp_path / "task", 1)
    settings = Settings(
        str(checkpoint), [TASK], tmp_path, limit=3, task_folders=[tasks], compiler="eager"
    )
    first = evaluate(settings, tmp_path / "policy", 0.75)
    lines = (tmp_path / "samples" / f"{TASK}.target-0.75.jsonl").read_text().splitlines()
    assert [json.loads(line)["doc_id"] for line in lines] == [0, 1, 2]

    assert 0 < first["skipped"] < 1

    from modes_fx.evaluation.chat import Chat

    monkeypatch.setattr(Chat, "generate_until", lambda self, asked: pytest.fail("asked again"))
    again = evaluate(settings, tmp_path / "policy", 0.75)
    said = [[sample["resps"] for sample in run["samples"][TASK]] for run in (first, again)]
    assert said[0] == said[1]
