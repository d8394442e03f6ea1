"""lmms-eval's chat models with a policy attached; nothing that failed is scored."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("lmms_eval")

from lmms_eval.models import get_model
from transformers import AutoModelForImageTextToText

from modes_fx.attach import attached, is_attached
from modes_fx.bench.demo_model import heldout_questions
from modes_fx.bench.demo_model.heldout_task import doc_to_messages
from modes_fx.calibration import preset_policy
from modes_fx.evaluation.plugin import CHAT, SKIPPING
from modes_fx.evaluation.skipping import raise_what_is_swallowed, transformers_model
from tests.tiny import save_untrained_demo, tiny_vlm


class Swallows:
    """A chat model that goes on with an empty answer where generation fails."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def generate_until(self, requests):
        try:
            self._model.generate(**requests)
        except RuntimeError:
            return [""]
        return ["answer"]

    def generate_until_multi_round(self, requests):
        return self.generate_until(requests)


@pytest.fixture
def swallows() -> Swallows:
    made = Swallows(tiny_vlm())
    raise_what_is_swallowed(made, made._model)
    return made


def test_an_error_that_a_chat_model_hides_ends_the_evaluation(swallows) -> None:
    wrong = {"input_ids": torch.zeros(1, 2, dtype=torch.int64), "pixel_values": torch.zeros(1, 3)}
    with pytest.raises(RuntimeError, match="Swallows of lmms-eval went on after an error"):
        swallows.generate_until({**wrong, "image_grid_thw": torch.ones(1, 3, dtype=torch.int64)})


def test_answers_that_were_given_pass(swallows) -> None:
    asked = {"input_ids": torch.ones(1, 2, dtype=torch.int64), "max_new_tokens": 1}
    assert swallows.generate_until(asked) == ["answer"]


def test_a_chat_model_without_a_transformers_model_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 0 transformers models"):
        transformers_model(SimpleNamespace(client="remote"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    # lmms-eval tells mixtures of experts by such a name.
    folder = save_untrained_demo(tmp_path_factory.mktemp("checkpoints") / "tiny-A1B")
    policy = folder / "policy"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    preset_policy(model, targets=[0.75]).save_pretrained(policy)
    return folder, policy


def requests(made, count: int = 2):
    """Questions as lmms-eval asks them."""
    questions = [question for question in heldout_questions(1) if question.images][:count]
    docs = [
        {"question": q.question, "answer": q.answer, "images": list(q.images)} for q in questions
    ]
    made.task_dict["task"] = {"test": docs}
    options = {"max_new_tokens": 2, "do_sample": False, "until": []}
    return [
        SimpleNamespace(args=("", doc_to_messages, dict(options), i, "task", "test"))
        for i in range(len(docs))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("skips", [True, False])
def test_our_chat_model_answers_with_a_policy_and_without(checkpoint, skips) -> None:
    folder, policy = checkpoint
    options = {"policy": str(policy), "target": 0.75, "compiler": "eager"} if skips else {}
    made = get_model(SKIPPING)(base=CHAT, pretrained=str(folder), batch_size=2, **options)
    assert is_attached(made.model) == skips
    answers = made.generate_until(requests(made))
    assert len(answers) == 2
    if skips:
        assert attached(made.model).target == 0.75
