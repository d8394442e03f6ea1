"""The losses of the recipe, and what it saves."""

import math

import pytest
import torch

from modes_fx.bench.demo_model.batches import BatchMaker
from modes_fx.bench.demo_model.digits import load_digits
from modes_fx.bench.demo_model.model import build_model, build_processor, load_model
from modes_fx.bench.demo_model.training import chat_losses, save_checkpoint


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return build_model(processor.tokenizer)


def test_an_untrained_model_routes_evenly_and_knows_no_answer(model, processor) -> None:
    inputs = BatchMaker(processor, load_digits("train"), seed=0).draw_chats(batch=4, turns=2)
    with torch.no_grad():
        answers, balance, concentration = chat_losses(model, inputs)
    assert answers == pytest.approx(math.log(len(processor.tokenizer)), rel=0.2)
    assert 1.0 <= balance < 3.0
    assert 1.0 <= concentration < 2.0


def test_a_saved_checkpoint_is_the_model_in_bfloat16(model, processor, tmp_path) -> None:
    save_checkpoint(model, processor, tmp_path)
    loaded, loaded_processor = load_model(torch.bfloat16, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16()), name
    assert loaded_processor.chat_template == processor.chat_template
    assert next(model.parameters()).dtype == torch.float32
