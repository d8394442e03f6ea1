"""The second model: another shape, small, and it answers questions."""

from importlib.resources import files

import torch

from modes_fx.bench.demo_model.evaluate import accuracy_by_kind, answer_questions
from modes_fx.bench.demo_model.model import DEMO_SHAPE
from modes_fx.bench.demo_model.questions import heldout_questions
from modes_fx.bench.demo_model.second import SHAPE, load_second_model


def test_it_differs_from_the_demo_model_in_all_that_matters() -> None:
    model, _ = load_second_model()
    text = model.config.text_config
    assert (text.num_hidden_layers, text.num_experts, text.num_experts_per_tok) == (
        SHAPE.layers,
        SHAPE.experts,
        SHAPE.top_k,
    )
    assert not {*vars(SHAPE).values()} & {*vars(DEMO_SHAPE).values()}
    weights = files("modes_fx.bench.demo_model").joinpath("second_checkpoint/model.safetensors")
    assert len(weights.read_bytes()) < 6e6


def test_it_has_learned_its_task() -> None:
    model, processor = load_second_model()
    questions = heldout_questions(5)
    with torch.inference_mode():
        accuracy = accuracy_by_kind(questions, answer_questions(model, processor, questions))
    assert accuracy["image"] > 0.7
    assert accuracy["text"] > 0.9
