"""The example with transformers' pipeline gives the trained demo model's right answer."""

import re

import pytest

from examples.pipeline import ask
from modes_fx.bench.demo_model import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_the_demo_model_gives_the_right_answer(capsys) -> None:
    answer = ask(CHECKPOINT, compiler="eager")
    assert answer == re.search(r"the right answer: (.*)\)", capsys.readouterr().out)[1]
