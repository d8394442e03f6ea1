"""Training batches: chats of several turns about augmented digit images."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ProcessorMixin

from modes_fx.bench.demo_model.chat import mark_answers
from modes_fx.bench.demo_model.digits import (
    CELL_SIDE,
    DIGITS_PER_IMAGE,
    GRID_SIDE,
    IMAGE_SIDE,
    DigitSet,
)
from modes_fx.bench.demo_model.model import IMAGE_TOKENS, MERGE_SIDE, PATCH_SIDE
from modes_fx.bench.demo_model.questions import IMAGE_KINDS, TEXT_KINDS, images_needed

IMAGE_SHARE = 0.85
TWO_IMAGES_SHARE = 0.12
TEXT_TURN_SHARE = 0.1
SYSTEM_SHARE = 0.2
SYSTEM_PROMPT = "You are a helpful assistant."

_ONE_IMAGE_KINDS = [kind for kind in IMAGE_KINDS if images_needed(kind) == 1]
_PATCHES = IMAGE_SIDE // PATCH_SIDE


class BatchMaker:
    """Makes training batches; the same seeds give the same batches.

    Images are augmented and cut into patches here, many at a time, in the order in which the
    processor lays out patches. Text goes through the processor's own chat template.
    """

    def __init__(self, processor: ProcessorMixin, digits: DigitSet, seed: int) -> None:
        """Prepare for drawing.

        Args:
            processor: The demo model's processor.
            digits: The training digits.
            seed: Seed of the questions; the augmentation follows torch's global seed.
        """
        self._processor = processor
        self._labels = digits.labels.tolist()
        self._images = torch.from_numpy(digits.images).float() / 255
        self._rng = random.Random(seed)

    def draw_chats(
        self, batch: int, turns: int, favoured: Sequence[str] = (), favoured_share: float = 0.0
    ) -> dict[str, Tensor]:
        """Draw chats of several question-answer turns, right-padded.

        Args:
            batch: Number of chats, B.
            turns: Questions in each chat.
            favoured: Kinds of question about one image to ask more often than others.
            favoured_share: Share of the questions about one image kept for favoured kinds.

        Returns:
            The model's inputs as the processor makes them, and ``answer_mask`` bool [B, S].
        """
        texts, shown = [], []
        for _ in range(batch):
            messages, chosen = self._draw_chat(turns, favoured, favoured_share)
            texts.append(self._render(messages))
            shown += chosen
        tokenizer = self._processor.tokenizer
        inputs = dict(tokenizer(texts, padding=True, padding_side="right", return_tensors="pt"))
        ids = inputs["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": inputs["attention_mask"],
            "mm_token_type_ids": (ids == self._processor.image_token_id).long(),
            "answer_mask": mark_answers(ids, tokenizer),
            **image_inputs(augment(self._images[shown])),
        }

    def draw_images(self, batch: int) -> tuple[dict[str, Tensor], Tensor]:
        """Draw images without text.

        Returns:
            The vision tower's inputs, and the labels int64 [batch, 4].
        """
        chosen = self._draw_digits(batch)
        labels = torch.tensor([self._labels[i] for i in chosen])
        return image_inputs(augment(self._images[chosen])), labels.view(batch, DIGITS_PER_IMAGE)

    def _draw_digits(self, images: int) -> list[int]:
        count = images * DIGITS_PER_IMAGE
        return [self._rng.randrange(len(self._labels)) for _ in range(count)]

    def _draw_chat(
        self, turns: int, favoured: Sequence[str], favoured_share: float
    ) -> tuple[list[dict], list[int]]:
        rng = self._rng
        images = 0
        if rng.random() < IMAGE_SHARE:
            images = 2 if rng.random() < TWO_IMAGES_SHARE else 1
        chosen = self._draw_digits(images)
        digits = [self._labels[i] for i in chosen]
        messages: list[dict] = []
        if rng.random() < SYSTEM_SHARE:
            messages.append({"role": "system", "content": SYSTEM_PROMPT})
        for turn in range(turns):
            question, answer = self._draw_turn(digits, turn, favoured, favoured_share)
            content: list[dict] = [{"type": "image"}] * images if turn == 0 else []
            messages.append(
                {"role": "user", "content": [*content, {"type": "text", "text": question}]}
            )
            messages.append({"role": "assistant", "content": answer})
        return messages, chosen

    def _draw_turn(
        self, digits: Sequence[int], turn: int, favoured: Sequence[str], favoured_share: float
    ) -> tuple[str, str]:
        rng = self._rng
        if not digits or (turn > 0 and rng.random() < TEXT_TURN_SHARE):
            return TEXT_KINDS[rng.choice(list(TEXT_KINDS))](rng, "train")
        if len(digits) > DIGITS_PER_IMAGE:
            return IMAGE_KINDS["two_images"](rng, digits)
        kinds = favoured if rng.random() < favoured_share else _ONE_IMAGE_KINDS
        return IMAGE_KINDS[rng.choice(kinds)](rng, digits)

    def _render(self, messages: list[dict]) -> str:
        text = self._processor.tokenizer.apply_chat_template(
            messages, chat_template=self._processor.chat_template, tokenize=False
        )
        image = self._processor.image_token
        return text.replace(image, image * IMAGE_TOKENS)


def augment(digits: Tensor) -> Tensor:
    """Scale digits to a cell with random rotation, scale, shear, shift and elastic warp.

    Args:
        digits: fp32 [N, 28, 28] in 0 to 1.

    Returns:
        fp32 [N, 64, 64].
    """
    n = len(digits)
    angle, shear = 0.15 * torch.randn(n), 0.15 * torch.randn(n)
    scale = 1 + 0.1 * torch.randn(n, 2)
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = angle.cos() * scale[:, 0]
    affine[:, 0, 1] = shear - angle.sin() * scale[:, 0]
    affine[:, 1, 0] = angle.sin() * scale[:, 1]
    affine[:, 1, 1] = angle.cos() * scale[:, 1]
    affine[:, :, 2] = 0.25 * (torch.rand(n, 2) - 0.5)
    shape = [CELL_SIDE, CELL_SIDE]
    grid = F.affine_grid(affine, [n, 1, *shape], align_corners=False)
    warp = F.interpolate(0.06 * torch.randn(n, 2, 5, 5), shape, mode="bilinear")
    grid = grid + warp.permute(0, 2, 3, 1)
    return F.grid_sample(digits[:, None], grid, align_corners=False)[:, 0]


def image_inputs(cells: Tensor) -> dict[str, Tensor]:
    """Lay cells out as images and cut them into patches, as the processor does.

    Args:
        cells: fp32 [4 * images, 64, 64] in 0 to 1.

    Returns:
        ``pixel_values`` fp32 [64 * images, 1536] and ``image_grid_thw`` int64 [images, 3].
    """
    rows = cells.view(-1, GRID_SIDE, GRID_SIDE, CELL_SIDE, CELL_SIDE)
    grey = rows.transpose(2, 3).reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    images, merged = len(grey), _PATCHES // MERGE_SIDE
    patches = grey.view(images, merged, MERGE_SIDE, PATCH_SIDE, merged, MERGE_SIDE, PATCH_SIDE)
    patches = patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(images * _PATCHES**2, 1, -1)
    # Three equal colours times two equal frames.
    pixels = ((patches - 0.5) / 0.5).repeat(1, 6, 1).flatten(1)
    return {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, _PATCHES, _PATCHES]]).repeat(images, 1),
    }
