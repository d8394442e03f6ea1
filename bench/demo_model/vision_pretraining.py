"""Pre-training of the vision tower, as large multimodal models have it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from modes_fx.bench.demo_model.batches import BatchMaker
from modes_fx.bench.demo_model.model import IMAGE_TOKENS
from modes_fx.bench.demo_model.schedule import Stage, build_optimizer, update


class VisionTeacher(nn.Module):
    """Asks the vision tower's outputs what they show and where; only for pre-training."""

    def __init__(self, tower: PreTrainedModel) -> None:
        """Put linear classifiers on each of the tower's outputs.

        Args:
            tower: The vision tower.
        """
        super().__init__()
        width = tower.config.out_hidden_size
        outputs = 1 + len(tower.config.deepstack_visual_indexes)
        self.tower = tower
        self.digit_heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(outputs))
        self.place_heads = nn.ModuleList(nn.Linear(width, IMAGE_TOKENS) for _ in range(outputs))

    def forward(
        self, pixel_values: Tensor, image_grid_thw: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return digit logits [images, 4, 10] and place logits [images, 16, 16] of each output.

        The final output comes first, then the intermediate ones.
        """
        seen = self.tower(pixel_values, grid_thw=image_grid_thw)
        outputs = [
            tokens.unflatten(0, (-1, IMAGE_TOKENS))
            for tokens in (seen.pooler_output, *seen.deepstack_features)
        ]
        digits = zip(self.digit_heads, map(_quarters, outputs), strict=True)
        places = zip(self.place_heads, outputs, strict=True)
        return [head(output) for head, output in digits], [head(output) for head, output in places]


def pretrain_vision(
    tower: PreTrainedModel,
    batches: BatchMaker,
    stage: Stage,
    log: Callable[[str], None],
    log_every: int = 100,
) -> None:
    """Train the vision tower alone, in place.

    It learns to name the digit in each quarter of an image, and each token's place: without
    the second, the language model takes very long to find out what is where.

    Args:
        tower: The vision tower.
        batches: Where the images come from.
        stage: Length and speed.
        log: Called with a line of progress now and then.
        log_every: Steps between those lines.
    """
    teacher = VisionTeacher(tower).train()
    optimizer = build_optimizer(teacher)
    places = torch.arange(IMAGE_TOKENS).repeat(stage.batch)
    for step in range(stage.steps):
        inputs, labels = batches.draw_images(stage.batch)
        digit_logits, place_logits = teacher(**inputs)
        digit = [F.cross_entropy(logits.flatten(0, 1), labels.flatten()) for logits in digit_logits]
        place = [F.cross_entropy(logits.flatten(0, 1), places) for logits in place_logits]
        loss = digit[0] + 0.3 * torch.stack(digit[1:]).sum() + 0.1 * torch.stack(place).sum()
        update(optimizer, loss, stage.rate_at(step))
        if (step + 1) % log_every == 0:
            right = (digit_logits[0].argmax(-1) == labels).float().mean()
            log(f"loss {loss:.3f} digits {right:.1%} place loss {place[0]:.4f}")


def _quarters(tokens: Tensor) -> Tensor:
    """Average the 4 x 4 tokens of images [N, 16, H] to quarters [N, 4, H]."""
    side = 2
    grid = tokens.unflatten(1, (side, side, side, side))
    return grid.mean(dim=(2, 4)).flatten(1, 2)
