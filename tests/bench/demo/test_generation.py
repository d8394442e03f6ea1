"""What is timed is split into prefill and decode, and a missing compiler is said at once."""

import pytest
import torch

from modes_fx import MatchError
from modes_fx.bench.demo.generation import PhaseMarker, require_compiler
from modes_fx.bench.timing import Moment, Stopwatch


def test_the_first_logits_end_the_prefill_and_the_others_are_decode():
    times = iter([0.0, 5.0, 6.0, 8.0])
    stopwatch = Stopwatch(lambda: Moment(next(times), 0.0))
    mark = PhaseMarker(stopwatch)
    scores = torch.randn(2, 3)
    for _ in range(3):
        assert mark(torch.zeros(2, 1), scores) is scores
    assert stopwatch.phases == {"prefill": Moment(5.0, 0.0), "decode": Moment(3.0, 0.0)}


def test_a_missing_compiler_is_said_before_anything_is_computed():
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(MatchError, match="CXX"),
    ):
        require_compiler()
