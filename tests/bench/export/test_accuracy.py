"""An artifact answers as the model does."""

import pytest

from modes_fx.bench.export.accuracy import answer_twice


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_model_gives_the_same_answers_in_onnx_runtime() -> None:
    answers = answer_twice(None, 0.75, "onnx", n_per_kind=2)
    assert answers.in_torch == answers.exported
    in_torch, exported = answers.accuracy()
    assert in_torch == exported
    assert in_torch["all"] > 0.5
