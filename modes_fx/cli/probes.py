"""Calls to export a model with, and others of new sizes to verify it on."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.cli.models import first_line
from modes_fx.export.calls import COMPONENTS, IMAGE, TEXT

QUESTIONS = (
    ("what is in the image ?", "what is in the image ?"),
    ("what is in the image ?", "is it larger than the one on the left or not ?", "why ?"),
)
SIDES = (128, 192)

Call = dict[str, Tensor]


def calls(
    model: PreTrainedModel,
    processor: Any,
    components: Sequence[str] | None = None,
    sides: Sequence[int] = SIDES,
) -> dict[str, list[Call]]:
    """Return two calls of each component, of different sizes.

    Args:
        model: to be called.
        processor: its processor or tokenizer; None: arbitrary token ids are used.
        components: which; None: text, and image where the model takes images.
        sides: the pixels of a side of the images, in one call and the other.

    Raises:
        ValueError: an unknown component, or one that the model does not take.
    """
    if components and (unknown := sorted(set(components) - set(COMPONENTS))):
        raise ValueError(f"there is no component {unknown[0]!r}; there are {', '.join(COMPONENTS)}")
    takes_images = hasattr(processor, "image_processor")
    if components and IMAGE in components and not takes_images:
        raise ValueError("the model has no image processor: export its component text alone")
    chosen = components or ([TEXT, IMAGE] if takes_images else [TEXT])
    return {
        name: _calls(model, processor, sides if takes_images and name != TEXT else ())
        for name in chosen
    }


def check_device(device: str) -> None:
    """Check that tensors can be put on a device.

    Raises:
        ValueError: its name is not known, or there is none here.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"there is no device {device!r}; there are cpu and cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"the device is cuda, and torch {torch.__version__} finds no GPU: run on a machine "
            "with one, with a build of torch for CUDA"
        )


def on_device(call: Call, device: str) -> Call:
    """Return a call's tensors on a device."""
    return {name: value.to(device) for name, value in call.items()}


def _calls(model: PreTrainedModel, processor: Any, sides: Sequence[int]) -> list[Call]:
    if processor is None:
        vocabulary = model.config.get_text_config().vocab_size
        return [_arbitrary(vocabulary, *shape) for shape in ((2, 9), (3, 14))]
    if not sides:
        return [_encode(model, processor, questions, None) for questions in QUESTIONS]
    # How many images a call has is written into most captured models.
    return [_encode(model, processor, QUESTIONS[i][:2], side) for i, side in enumerate(sides)]


def _arbitrary(vocabulary: int, batch: int, length: int) -> Call:
    ids = torch.arange(1, batch * length + 1).view(batch, length) % vocabulary
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _encode(
    model: PreTrainedModel, processor: Any, questions: Sequence[str], side: int | None
) -> Call:
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        if processor.chat_template is None:
            encoded = processor(text=list(questions), padding=True, return_tensors="pt")
        else:
            encoded = processor.apply_chat_template(
                [_chat(question, side) for question in questions],
                add_generation_prompt=True,
                tokenize=True,
                padding=True,
                return_dict=True,
                return_tensors="pt",
            )
    except (OSError, TypeError, KeyError, ImportError) as error:
        raise ValueError(f"the processor took no chat: {first_line(error)}") from error
    return {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in encoded.items()
        if isinstance(value, Tensor)
    }


def _chat(question: str, side: int | None) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if side is not None:
        generator = torch.Generator().manual_seed(side)
        pixels = torch.randint(256, (side, side, 3), generator=generator, dtype=torch.uint8)
        content.insert(0, {"type": "image", "image": Image.fromarray(pixels.numpy())})
    return [{"role": "user", "content": content}]
