"""Batches hold what they say, and their tokens are counted by modality."""

import pytest
import torch

from modes_fx.calibration.data import (
    FEW_TOKENS,
    Batch,
    calibrated_modalities,
    count_tokens,
    token_codes,
)
from modes_fx.vocabulary import Modality
from tests.tiny import chat, left_padded, tiny_vlm


def test_a_batch_with_a_wrong_mask_is_refused() -> None:
    inputs = left_padded(chat(5), chat(4))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"answer_mask \(2, 4\)"):
        Batch(inputs, mask[:, 1:], [0, 1])
    mask[0, -1] = True
    with pytest.raises(ValueError, match="sample 8 has no answer token"):
        Batch(inputs, mask, [7, 8])
    with pytest.raises(ValueError, match="first token"):
        Batch(inputs, ~mask, [7, 8])


def test_tokens_are_counted_by_modality() -> None:
    inputs = left_padded(chat(text=5, images=1), chat(text=3))
    special = int(inputs["input_ids"][0, -1])
    tokens = count_tokens([token_codes(tiny_vlm(layers=1), inputs, [special])])
    others = int((inputs["input_ids"] == special).sum())
    assert tokens[Modality.VISION] == 4
    assert tokens[Modality.OTHER] == others
    assert tokens[Modality.PADDING] == 8
    assert tokens[Modality.TEXT] == 2 * 11 - 4 - others - 8


@pytest.mark.filterwarnings("ignore:the calibration data has no vision")
def test_a_modality_without_tokens_or_with_few_is_said_so() -> None:
    tokens = dict.fromkeys(Modality, 0) | {Modality.TEXT: FEW_TOKENS}
    with pytest.warns(UserWarning, match="no vision token"):
        assert calibrated_modalities(tokens) == ["text"]
    tokens[Modality.VISION] = FEW_TOKENS - 1
    with pytest.warns(UserWarning, match=f"only {FEW_TOKENS - 1} vision tokens"):
        assert calibrated_modalities(tokens) == ["text", "vision"]
    with (
        pytest.raises(ValueError, match="no token of the calibration data"),
        pytest.warns(UserWarning, match="no text token"),
    ):
        calibrated_modalities(dict.fromkeys(Modality, 0))
