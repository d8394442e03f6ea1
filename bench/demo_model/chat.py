"""Questions as chat messages, and chat messages as model inputs, through the real processor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modes_fx.bench.demo_model.questions import Question

Message = dict[str, Any]


def question_messages(
    question: Question, *, with_answer: bool = False, system: str | None = None
) -> list[Message]:
    """Write a question as a chat: the images, then the question, then perhaps the answer.

    Args:
        question: The question.
        with_answer: Whether the assistant's turn with the right answer is part of the chat.
        system: A system prompt, if any.
    """
    images = [{"type": "image", "image": image} for image in question.images]
    messages: list[Message] = []
    if system is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    content = [*images, {"type": "text", "text": question.question}]
    messages.append({"role": "user", "content": content})
    if with_answer:
        answer = [{"type": "text", "text": question.answer}]
        messages.append({"role": "assistant", "content": answer})
    return messages


def encode(processor: ProcessorMixin, questions: Sequence[Question]) -> dict[str, Tensor]:
    """Encode questions as a left-padded batch of prompts, ready for ``model.generate``.

    Args:
        processor: The demo model's processor.
        questions: B questions; text-only ones and ones with images may be mixed.

    Returns:
        ``input_ids``, ``attention_mask`` and ``mm_token_type_ids``, int64 [B, S]; where any
        question has images, also ``pixel_values`` fp32 [64 * images, 1536] and
        ``image_grid_thw`` int64 [images, 3].
    """
    chats = [question_messages(question) for question in questions]
    return _apply_template(processor, chats, add_generation_prompt=True)


def encode_with_answers(
    processor: ProcessorMixin, questions: Sequence[Question]
) -> dict[str, Tensor]:
    """Encode questions with their right answers, and mark the answers' tokens.

    Args:
        processor: The demo model's processor.
        questions: B questions; text-only ones and ones with images may be mixed.

    Returns:
        As ``encode``, and ``answer_mask`` bool [B, S]: True where ``input_ids`` holds a token
        of the answer or the ``<|im_end|>`` that ends it. Logits at position ``s - 1`` predict
        the token at ``s``. Take the mask out before calling the model.
    """
    chats = [question_messages(question, with_answer=True) for question in questions]
    inputs = _apply_template(processor, chats, add_generation_prompt=False)
    return {**inputs, "answer_mask": mark_answers(inputs["input_ids"], processor.tokenizer)}


def mark_answers(input_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Mark what the assistant says in chats, each answer with the ``<|im_end|>`` that ends it.

    Args:
        input_ids: int64 [B, S], chats written with the demo model's chat template.
        tokenizer: The demo model's tokenizer.

    Returns:
        bool [B, S].
    """
    turn_start, turn_end, role, padding = tokenizer.convert_tokens_to_ids(
        ["<|im_start|>", "<|im_end|>", "assistant", "<|endoftext|>"]
    )
    position = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    start = torch.where(input_ids == turn_start, position, -1).cummax(dim=1).values
    end = torch.where(input_ids == turn_end, position, -1).cummax(dim=1).values
    speaker = input_ids.gather(1, (start + 1).clamp(max=input_ids.shape[1] - 1))
    spoken = (start >= 0) & (speaker == role) & (position > start + 1)
    return spoken & (input_ids != padding) & ((end < start) | (end == position))


def _apply_template(
    processor: ProcessorMixin, chats: list[list[Message]], *, add_generation_prompt: bool
) -> dict[str, Tensor]:
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=add_generation_prompt,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    )
    return dict(inputs)
