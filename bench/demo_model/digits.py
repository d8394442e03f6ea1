"""Real handwritten digits: loading, the fixed split, and 2x2 grids of them as RGB images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID_SIDE = 2
DIGITS_PER_IMAGE = GRID_SIDE * GRID_SIDE
IMAGE_SIDE = 128
CELL_SIDE = IMAGE_SIDE // GRID_SIDE

_HELD_OUT = 1_000
_SPLIT_SEED = 0

Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class DigitSet:
    """Digit images with their labels.

    Attributes:
        images: uint8 [N, 28, 28], white ink on black.
        labels: int64 [N], 0 to 9.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of digits, N."""
        return len(self.labels)


@cache
def load_digits(split: Split) -> DigitSet:
    """Load one side of the split: 4,000 digits for training, 1,000 held out.

    The split is by digit image, so no held-out question shows a digit image seen in training.

    Args:
        split: "train" or "held-out".

    Raises:
        ValueError: The split is neither of the two.
    """
    if split not in ("train", "held-out"):
        raise ValueError(f'split must be "train" or "held-out", not {split!r}')
    with files(__package__).joinpath("data/mnist_5k.npz").open("rb") as file:
        archive = np.load(file)
        images, labels = archive["images"], archive["labels"]
    # RandomState, unlike default_rng, promises the same stream in every NumPy release.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    chosen = order[:_HELD_OUT] if split == "held-out" else order[_HELD_OUT:]
    return DigitSet(images[chosen], labels[chosen].astype(np.int64))


def compose_grid(digits: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """Lay four digits out as one image: top left, top right, bottom left, bottom right.

    Args:
        digits: Four uint8 arrays [28, 28].

    Returns:
        An RGB image of 128 x 128 pixels.

    Raises:
        ValueError: There are not exactly four digits.
    """
    if len(digits) != DIGITS_PER_IMAGE:
        raise ValueError(f"a grid holds {DIGITS_PER_IMAGE} digits, got {len(digits)}")
    grid = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    for position, digit in enumerate(digits):
        row, column = divmod(position, GRID_SIDE)
        cell = Image.fromarray(digit).resize((CELL_SIDE, CELL_SIDE), Image.Resampling.BILINEAR)
        grid.paste(cell, (column * CELL_SIDE, row * CELL_SIDE))
    return grid.convert("RGB")
