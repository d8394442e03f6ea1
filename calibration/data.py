"""Calibration samples: chats through the model's own processor, with their answer tokens marked."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.modality import TokenIds, modality_codes
from modes_fx.vocabulary import CALIBRATED, Modality, ModalityName

Chat = Sequence[Mapping[str, Any]]

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


def encode_chats(processor: Any, chats: Sequence[Chat], batch_size: int = 16) -> list[Batch]:
    """Encode chats whose last turn is the answer, in batches of samples of similar length.

    The answer is found by comparing a chat with its prompt (all but the last turn, ready for
    generation), which it must begin with; it ends with the first end-of-sequence token.

    Args:
        processor: the model's processor, or its tokenizer where the model has no processor.
        chats: message lists as ``processor.apply_chat_template`` takes them.
        batch_size: the most chats in a batch.

    Returns:
        Batches on the CPU; ``samples`` are places in ``chats``.

    Raises:
        ValueError: there are no chats, one does not end with an assistant's answer, or the chat
            template writes a prompt that its chat does not begin with.
    """
    if not chats:
        raise ValueError("there are no chats to calibrate on")
    for place, chat in enumerate(chats):
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise ValueError(f"sample {place} does not end with an assistant's turn, its answer")
    lengths = [_rough_length(chat) for chat in chats]
    order = sorted(range(len(chats)), key=lambda place: (lengths[place], place))
    return [
        _encode(processor, chats, order[start : start + batch_size])
        for start in range(0, len(order), batch_size)
    ]


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


def _rough_length(chat: Chat) -> tuple[int, int]:
    """How many images, clips and sounds a chat shows and how many characters it has."""
    parts = [
        part
        for message in chat
        for part in (
            [{"type": "text", "text": message["content"]}]
            if isinstance(message["content"], str)
            else message["content"]
        )
    ]
    shown = sum(part["type"] != "text" for part in parts)
    return shown, sum(len(part.get("text", "")) for part in parts)


def _encode(processor: Any, chats: Sequence[Chat], places: Sequence[int]) -> Batch:
    whole = _apply_template(processor, [chats[place] for place in places], prompt=False)
    prompts = _apply_template(processor, [chats[place][:-1] for place in places], prompt=True)
    ids, answer_mask = whole["input_ids"], torch.zeros_like(whole["input_ids"], dtype=torch.bool)
    end_of_sequence = getattr(processor, "tokenizer", processor).eos_token_id
    for row, place in enumerate(places):
        prompt = prompts["input_ids"][row, prompts["attention_mask"][row].bool()]
        positions = whole["attention_mask"][row].nonzero()[:, 0]
        start = len(prompt)
        if start > len(positions) or not torch.equal(ids[row, positions[:start]], prompt):
            raise ValueError(
                f"the tokens of sample {place} do not begin with those of its prompt, so the chat "
                "template does not tell where the answer starts: pass batches (modes_fx.calibration"
                ".Batch) with an answer mask of your own"
            )
        ends = (ids[row, positions[start:]] == end_of_sequence).nonzero()
        stop = start + int(ends[0]) + 1 if len(ends) else len(positions)
        answer_mask[row, positions[start:stop]] = True
    return Batch(whole, answer_mask, tuple(places))


def _apply_template(processor: Any, chats: list[Chat], *, prompt: bool) -> dict[str, Tensor]:
    padding = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    is_processor = hasattr(processor, "tokenizer")
    encoded = processor.apply_chat_template(
        [list(chat) for chat in chats],
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=True,
        **({"processor_kwargs": padding} if is_processor else padding),
    )
    return dict(encoded)
