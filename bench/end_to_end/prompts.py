"""Prompts with an image each, and the model that they are for, loaded as often as ways need it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.bench.demo_model import encode, heldout_questions
from modes_fx.bench.demo_model.questions import Question
from modes_fx.cli.models import load_named_model


@dataclass(frozen=True)
class Source:
    """A model by name, and how its prompts look.

    Attributes:
        name: a folder, the id of a hub repository, or "demo".
        image_side: pixels that images are resized to; None leaves them as they are.
        trust_remote_code: whether code from the repository may run.
    """

    name: str
    image_side: int | None = None
    trust_remote_code: bool = False

    def load(self) -> tuple[PreTrainedModel, Any]:
        """Load a fresh copy of the model, and its processor.

        Raises:
            ValueError: there is no such model, or no processor that takes images.
        """
        model, processor = load_named_model(self.name, trust_remote_code=self.trust_remote_code)
        if not hasattr(processor, "image_processor"):
            raise ValueError(
                f"{self.name} has no processor that takes images, and every prompt of this "
                "benchmark has one: use `modes-fx bench model` for text"
            )
        return model.requires_grad_(False), processor

    def prompts(self, batch: int) -> dict[str, Tensor]:
        """Encode questions about real handwritten digits, one image each.

        Args:
            batch: how many.

        Returns:
            The arguments of ``generate``, padded on the left; images in the model's dtype.
        """
        model, processor = self.load()
        if hasattr(processor, "tokenizer"):
            processor.tokenizer.padding_side = "left"
        with_image = [q for q in heldout_questions(batch) if len(q.images) == 1]
        encoded = encode(processor, [self._resized(question) for question in with_image[:batch]])
        return {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in encoded.items()
            if isinstance(value, torch.Tensor)
        }

    def _resized(self, question: Question) -> Question:
        if self.image_side is None:
            return question
        sides = (self.image_side, self.image_side)
        return replace(question, images=tuple(image.resize(sides) for image in question.images))
