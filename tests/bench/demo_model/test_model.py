"""The shipped checkpoint is small, has the promised structure, and answers questions."""

from importlib.resources import files

import pytest

from modes_fx.bench.demo_model import calibration_questions, heldout_questions, load_model
from modes_fx.bench.demo_model.evaluate import (
    accuracy_by_kind,
    answer_questions,
    reduced_experts,
)


@pytest.fixture(scope="module")
def loaded():
    return load_model()


def test_the_weights_take_less_than_ten_megabytes() -> None:
    weights = files("modes_fx.bench.demo_model").joinpath("checkpoint/model.safetensors")
    assert len(weights.read_bytes()) < 10_000_000


def test_the_structure_is_that_of_a_large_model(loaded) -> None:
    config = loaded[0].config.text_config
    assert config.num_hidden_layers == 8
    assert config.num_experts == 32
    assert config.num_experts_per_tok == 8
    assert not config.output_router_logits


def test_it_answers_questions_about_digits_it_never_saw(loaded) -> None:
    questions = heldout_questions(4, seed=1)
    accuracy = accuracy_by_kind(questions, answer_questions(*loaded, questions))
    assert accuracy["all"] > 0.85


def test_without_its_experts_it_knows_nothing(loaded) -> None:
    questions = calibration_questions(30)
    with reduced_experts(loaded[0], keep=0):
        accuracy = accuracy_by_kind(questions, answer_questions(*loaded, questions))
    assert accuracy["all"] < 0.5
