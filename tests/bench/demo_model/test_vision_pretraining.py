"""The teacher asks every output of the vision tower for digits and places."""

import torch

from modes_fx.bench.demo_model.batches import BatchMaker
from modes_fx.bench.demo_model.digits import load_digits
from modes_fx.bench.demo_model.model import build_model, build_processor
from modes_fx.bench.demo_model.schedule import Stage
from modes_fx.bench.demo_model.vision_pretraining import VisionTeacher, pretrain_vision


def test_pre_training_teaches_digits_and_places_and_reports_progress() -> None:
    torch.manual_seed(0)
    processor = build_processor()
    tower = build_model(processor.tokenizer).model.visual
    batches = BatchMaker(processor, load_digits("train"), seed=0)
    inputs, labels = batches.draw_images(2)
    digits, places = VisionTeacher(tower)(**inputs)
    assert labels.shape == (2, 4)
    assert [logits.shape for logits in digits] == [(2, 4, 10)] * 3
    assert [logits.shape for logits in places] == [(2, 16, 16)] * 3

    before = tower.merger.linear_fc2.weight.clone()
    lines: list[str] = []
    stage = Stage("short", 0, steps=2, decay_steps=2, batch=2, learning_rate=1e-3, warmup=1)
    pretrain_vision(tower, batches, stage, lines.append, log_every=1)
    assert len(lines) == 2
    assert not torch.equal(tower.merger.linear_fc2.weight, before)
