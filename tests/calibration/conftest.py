"""Samples of a tiny random model, and what it says to them."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from modes_fx.calibration import Batch, Evaluator, Reference, recorded_shares
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.pairs import Shares
from tests.tiny import chat, left_padded, tiny_vlm

ANSWER_TOKENS = (1, 3, 2, 4)


def make_batch(samples: Sequence[int], images: int) -> Batch:
    """Chats of different lengths; the last tokens of each are its answer."""
    chats = [chat(text=12 + n % 4, images=images, seed=n) for n in samples]
    inputs = left_padded(*chats)
    answer_mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for row, n in enumerate(samples):
        answer_mask[row, -ANSWER_TOKENS[n % len(ANSWER_TOKENS)] :] = True
    return Batch(inputs, answer_mask, samples)


@pytest.fixture(scope="session")
def model() -> nn.Module:
    """The tests leave it as it was."""
    return tiny_vlm()


@pytest.fixture(scope="session")
def batches() -> list[Batch]:
    """Twelve samples, six of them with images, not in the order of the data."""
    return [make_batch([2, 3, 5, 7, 9, 11], images=0), make_batch([0, 1, 4, 6, 8, 10], images=2)]


@pytest.fixture(scope="session")
def recorded(model, batches) -> tuple[Reference, Shares]:
    with recorded_shares(model, keep_all_policy(model)) as shares:
        reference = Reference.record(model, batches)
    return reference, shares


@pytest.fixture(scope="session")
def reference(recorded) -> Reference:
    return recorded[0]


@pytest.fixture(scope="session")
def shares(recorded) -> Shares:
    return recorded[1]


@pytest.fixture
def evaluator(model, reference) -> Iterator[Evaluator]:
    with Evaluator(model, reference) as evaluator:
        yield evaluator
