"""Scores of questions by group."""

import torch

from modes_fx.bench.demo.comparison import score
from modes_fx.bench.demo_model import Question


def test_scores_are_counted_by_modality_and_kind():
    image = object()
    questions = [
        Question("digit", "what digit is top left ?", "3", images=(image,)),
        Question("digit", "what digit is top left ?", "4", images=(image,)),
        Question("plus", "what is 1 plus 2 ?", "3"),
        Question("minus", "what is 2 minus 1 ?", "1"),
    ]
    scores = score(questions, torch.tensor([True, False, True, True]))
    assert scores.questions == 4
    assert scores.accuracy == 0.75
    assert (scores.accuracy_image, scores.accuracy_text) == (0.5, 1.0)
    assert scores.accuracy_by_kind == {"digit": 0.5, "plus": 1.0, "minus": 1.0}
    assert scores.accuracy_interval[0] < 0.75 < scores.accuracy_interval[1]
