"""A small trained multimodal mixture-of-experts model, the questions it answers and its recipe."""

from modes_fx.bench.demo_model.chat import encode, encode_with_answers, question_messages
from modes_fx.bench.demo_model.model import CHECKPOINT, load_model
from modes_fx.bench.demo_model.questions import (
    IMAGE_KINDS,
    TEXT_KINDS,
    Question,
    calibration_questions,
    heldout_questions,
)

__all__ = [
    "CHECKPOINT",
    "IMAGE_KINDS",
    "TEXT_KINDS",
    "Question",
    "calibration_questions",
    "encode",
    "encode_with_answers",
    "heldout_questions",
    "load_model",
    "question_messages",
]
