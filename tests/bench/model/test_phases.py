"""Prefill and decode with the static cache give what one call on all tokens gives."""

import pytest
import torch
from torch.nn.functional import pad

from modes_fx.bench.model.build import build_model, find_model, make_prompt
from modes_fx.bench.model.phases import DECODE_STEPS, PHASES, Session

TINY = find_model("tiny")


@pytest.fixture(scope="module")
def session():
    with torch.inference_mode():
        model = build_model(TINY, 2, 16 + DECODE_STEPS, torch.float32)
        yield Session(model, make_prompt(TINY, 16, torch.float32))


def test_decode_continues_the_prompt(session):
    prompt = make_prompt(TINY, 16, torch.float32)
    ids = torch.cat([prompt["input_ids"], *session.steps], dim=1)
    kinds = pad(prompt["mm_token_type_ids"], (0, DECODE_STEPS))
    whole = session.model(**{**prompt, "input_ids": ids, "mm_token_type_ids": kinds}).logits[0]
    torch.testing.assert_close(session.prefill(every_token=True), whole[:16])
    torch.testing.assert_close(session.decode(), whole[16:])


@pytest.mark.parametrize("phase", PHASES)
def test_every_call_begins_at_the_same_place(session, phase):
    first = session.run(phase)
    session.prefill()
    torch.testing.assert_close(session.run(phase), first)
