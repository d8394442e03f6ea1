"""Chats through the model's own processor and chat template, with their answer tokens marked."""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from modes_fx.calibration.data import Batch
from modes_fx.calibration.store import TensorStore

Chat = Sequence[Mapping[str, Any]]
"""Messages as ``apply_chat_template`` takes them; the last is the assistant's, the answer."""

_ANSWERS = "answer_mask"
_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatBatches(Sequence[Batch]):
    """Chats in batches of samples of similar length, each encoded when it is first asked for.

    Attributes:
        layout: the samples of each batch, and whether they are held back, before any is encoded.
    """

    def __init__(
        self,
        processor: Any,
        chats: Sequence[Chat],
        batch_size: int = 16,
        *,
        hold_back: bool = False,
    ) -> None:
        """Lay out the batches.

        Args:
            processor: the model's processor, or its tokenizer where the model has none.
            chats: message lists as ``processor.apply_chat_template`` takes them. May have a method
                ``where(place)`` that says in words where a chat comes from.
            batch_size: the most chats in a batch.
            hold_back: keep back every second one, drawn among chats of similar length.

        Raises:
            ValueError: there are no chats, one does not end with an assistant's answer, or the
                answer is empty.
        """
        if not chats:
            raise ValueError("there are no chats to calibrate on")
        if batch_size < 1:
            raise ValueError(f"a batch has at least one sample, not {batch_size}")
        self._processor, self._chats = processor, chats
        self._where: Callable[[int], str] = getattr(chats, "where", "sample {}".format)
        self._store = TensorStore()
        lengths = [self._checked_length(place) for place in range(len(chats))]
        order = sorted(range(len(chats)), key=lambda place: (lengths[place], place))
        halves = _halves(order) if hold_back and len(order) > 1 else (order, [])
        self.layout = [
            (tuple(half[start : start + batch_size]), held_back)
            for half, held_back in zip(halves, (False, True), strict=True)
            for start in range(0, len(half), batch_size)
        ]

    def __len__(self) -> int:
        """Return how many batches there are."""
        return len(self.layout)

    @overload
    def __getitem__(self, place: int) -> Batch: ...

    @overload
    def __getitem__(self, place: slice) -> list[Batch]: ...

    def __getitem__(self, place: int | slice) -> Batch | list[Batch]:
        """Return a batch, on the CPU; encoded the first time.

        Raises:
            ValueError: a sample cannot be encoded, or its answer cannot be found; says where.
        """
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        samples, held_back = self.layout[place]
        name = f"batch-{place}"
        if name not in self._store:
            self._store.put(name, self._encode(samples))
        tensors = dict(self._store[name])
        answer_mask = tensors.pop(_ANSWERS)
        return Batch(tensors, answer_mask, samples, held_back)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        return (self[place] for place in range(len(self)))

    def _checked_length(self, place: int) -> tuple[int, int]:
        chat, where = self._chats[place], self._where(place)
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise ValueError(f"{where} does not end with an assistant's turn, its answer")
        if not _text_of(chat[-1]).strip():
            raise ValueError(f"{where} has an empty answer: leave it out, or give its answer")
        return _rough_length(chat)

    def _encode(self, samples: Sequence[int]) -> dict[str, Tensor]:
        try:
            return self._encode_together(samples)
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            for place in samples if len(samples) > 1 else ():
                self._encode([place])
            if isinstance(error, _SampleError):
                raise
            where = self._where(samples[0]) if len(samples) == 1 else f"samples {list(samples)}"
            raise _SampleError(
                f"{where} cannot be encoded by {type(self._processor).__name__}: "
                f"{type(error).__name__}: {error}. Mend it or leave it out"
            ) from error

    def _encode_together(self, samples: Sequence[int]) -> dict[str, Tensor]:
        chats = [self._chats[place] for place in samples]
        whole = _apply_template(self._processor, chats)
        prompts = _apply_template(self._processor, [chat[:-1] for chat in chats], prompt=True)
        answer_mask = torch.zeros_like(whole["input_ids"], dtype=torch.bool)
        for row, place in enumerate(samples):
            positions = whole["attention_mask"][row].nonzero()[:, 0]
            tokens = whole["input_ids"][row, positions]
            prompt = prompts["input_ids"][row, prompts["attention_mask"][row].bool()]
            start, stop = self._answer(place, tokens, prompt)
            answer_mask[row, positions[start:stop]] = True
        return {**whole, _ANSWERS: answer_mask}

    def _answer(self, place: int, tokens: Tensor, prompt: Tensor) -> tuple[int, int]:
        """Return where the answer starts and ends in a chat's tokens."""
        start = len(prompt)
        if start < len(tokens) and torch.equal(tokens[:start], prompt):
            end_of_sequence = getattr(self._processor, "tokenizer", self._processor).eos_token_id
            ends = (tokens[start:] == end_of_sequence).nonzero()
            return start, start + int(ends[0]) + 1 if len(ends) else len(tokens)
        if _MARKS_ANSWERS.search(str(self._processor.chat_template)):
            encoded = _apply_template(self._processor, [self._chats[place]], marked=True)
            is_token = encoded["attention_mask"][0].bool()
            marked = set(
                torch.as_tensor(encoded["assistant_masks"])[0, is_token].nonzero()[:, 0].tolist()
            )
            if marked:
                start = stop = max(marked) + 1
                while start - 1 in marked:
                    start -= 1
                return start, stop
        raise _SampleError(
            f"the tokens of {self._where(place)} do not begin with those of its prompt, so the chat"
            " template does not tell where the answer starts: mark it in the template "
            "({% generation %}), or pass batches (modes_fx.calibration.Batch) with an answer mask "
            "of your own"
        )


def encode_chats(processor: Any, chats: Sequence[Chat], batch_size: int = 16) -> list[Batch]:
    """Encode chats whose last turn is the answer, in batches of samples of similar length.

    The answer is found by comparing a chat with its prompt (all but the last turn, ready for
    generation); where the chat does not begin with it, by what the chat template marks as
    generated. It ends with the first end-of-sequence token.

    Args:
        processor: the model's processor, or its tokenizer where the model has no processor.
        chats: message lists as ``processor.apply_chat_template`` takes them.
        batch_size: the most chats in a batch.

    Returns:
        Batches on the CPU; ``samples`` are places in ``chats``.

    Raises:
        ValueError: there are no chats, one does not end with an assistant's answer, cannot be
            encoded, or the chat template does not tell where its answer starts.
    """
    return list(ChatBatches(processor, chats, batch_size))


class _SampleError(ValueError):
    """One sample is of no use; the message says which."""


def _halves(order: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide samples, ordered by length, in two halves alike: of each two neighbours one to each.

    The draw depends on nothing but how many there are.
    """
    draw = random.Random(0)
    fit, held_back = [], []
    for start in range(0, len(order), 2):
        pair = list(order[start : start + 2])
        draw.shuffle(pair)
        fit.append(pair[0])
        held_back += pair[1:]
    return fit, held_back


def _parts(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text_of(message: Mapping[str, Any]) -> str:
    return "".join(part.get("text") or "" for part in _parts(message))


def _rough_length(chat: Chat) -> tuple[int, int]:
    """How many images, clips and sounds a chat shows and how many characters it has."""
    shown = sum(part["type"] != "text" for message in chat for part in _parts(message))
    return shown, sum(len(_text_of(message)) for message in chat)


def _apply_template(
    processor: Any, chats: Sequence[Chat], *, prompt: bool = False, marked: bool = False
) -> dict[str, Tensor]:
    padding = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    is_processor = hasattr(processor, "tokenizer")
    encoded = processor.apply_chat_template(
        [list(chat) for chat in chats],
        add_generation_prompt=prompt,
        tokenize=True,
        return_dict=True,
        **({"return_assistant_tokens_mask": True} if marked else {}),
        **({"processor_kwargs": padding} if is_processor else padding),
    )
    return dict(encoded)
