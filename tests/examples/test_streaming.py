"""The example that streams gives the trained demo model's right answer, in pieces."""

import re

import pytest

from examples.streaming import stream
from modes_fx.bench.demo_model import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_the_demo_models_answer_comes_in_pieces_and_is_right(capsys) -> None:
    pieces = [piece for piece in stream(CHECKPOINT, compiler="eager") if piece]
    assert len(pieces) > 1
    right = re.search(r"the right answer: (.*)\)", capsys.readouterr().out)[1]
    assert "".join(pieces).split() == right.split()
