"""Calibration samples as the model takes them, and how many tokens of each modality they hold."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.modality import TokenIds, modality_codes
from modes_fx.vocabulary import CALIBRATED, Modality, ModalityName

EXPECTED: tuple[ModalityName, ...] = ("text", "vision")
FEW_TOKENS = 200
"""Below this many tokens of a modality, its constants are mostly chance, and the user is told."""


@dataclass(frozen=True)
class Batch:
    """Samples that go through the model together: B rows of S tokens, left-padded.

    Attributes:
        inputs: the arguments of the model's forward, by name; among them ``input_ids`` ``[B, S]``.
        answer_mask: bool ``[B, S]``, true where ``input_ids`` holds a token of the answer. The
            logits at position ``s - 1`` predict the token at ``s``.
        samples: the place of each row's sample in the data, B numbers.
        held_back: whether they are kept back, to check what was chosen by the other samples.
    """

    inputs: Mapping[str, Tensor]
    answer_mask: Tensor
    samples: Sequence[int]
    held_back: bool = False

    def __post_init__(self) -> None:
        """Refuse a mask that does not fit the tokens, or a sample without an answer."""
        shape, ids = tuple(self.answer_mask.shape), self.inputs["input_ids"]
        if shape != tuple(ids.shape) or len(self.samples) != shape[0]:
            raise ValueError(
                f"a batch has input_ids {tuple(ids.shape)}, answer_mask {shape} and "
                f"{len(self.samples)} sample numbers: give one mask entry a token, one number a row"
            )
        if self.answer_mask[:, 0].any():
            raise ValueError("an answer starts at its chat's first token: nothing predicts it")
        for sample, marked in zip(self.samples, self.answer_mask.any(dim=1).tolist(), strict=True):
            if not marked:
                raise ValueError(f"sample {sample} has no answer token: leave it out")


def token_codes(
    model: PreTrainedModel, inputs: Mapping[str, Any], special_token_ids: Iterable[int] = ()
) -> Tensor:
    """Return the modality code of every token of a call, int8 ``[B * S]``.

    Args:
        model: a transformers model.
        inputs: the arguments of its forward, by name.
        special_token_ids: tokens that are never skipped.
    """
    return modality_codes(
        TokenIds.from_config(model.config, special_token_ids),
        inputs["input_ids"],
        mm_token_type_ids=inputs.get("mm_token_type_ids"),
        attention_mask=inputs.get("attention_mask"),
    )


def count_tokens(codes: Iterable[Tensor]) -> dict[Modality, int]:
    """Count the tokens of each modality code in the codes of several batches."""
    counted = [torch.bincount(code.long(), minlength=len(Modality)) for code in codes]
    counts = torch.stack(counted).sum(0)
    return {modality: int(counts[modality]) for modality in Modality}


def calibrated_modalities(tokens: Mapping[Modality, int]) -> list[ModalityName]:
    """Return the modalities that can be calibrated: those with tokens. Warns about the others.

    Args:
        tokens: how many tokens of each code the calibration data holds.

    Raises:
        ValueError: none has.
    """
    for name in EXPECTED:
        count = tokens[CALIBRATED[name]]
        if count == 0:
            warnings.warn(
                f"the calibration data has no {name} token: the policy never skips experts for "
                f"{name}. Add samples with {name}, if the model is to be used with it",
                stacklevel=3,
            )
        elif count < FEW_TOKENS:
            warnings.warn(
                f"the calibration data has only {count} {name} tokens, fewer than {FEW_TOKENS}: "
                "its constants will depend on chance. Use more samples",
                stacklevel=3,
            )
    found = [name for name, modality in CALIBRATED.items() if tokens[modality] > 0]
    if not found:
        raise ValueError("no token of the calibration data has a modality that can skip experts")
    return found
