"""The questions the demo model answers: about images of four digits, and about plain text."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from PIL import Image

from modes_fx.bench.demo_model.digits import (
    DIGITS_PER_IMAGE,
    DigitSet,
    Split,
    compose_grid,
    load_digits,
)

POSITIONS = ("top left", "top right", "bottom left", "bottom right")
ROWS = {"top row": (0, 1), "bottom row": (2, 3)}
COLUMNS = {"left column": (0, 2), "right column": (1, 3)}
ORDINALS = ("first", "second")


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        kind: A key of ``IMAGE_KINDS`` or ``TEXT_KINDS``.
        question: What is asked, in plain words.
        answer: The only right answer, to be matched exactly.
        images: The images it is about, in order: none, one or two.
    """

    kind: str
    question: str
    answer: str
    images: tuple[Image.Image, ...] = ()

    @property
    def modality(self) -> Literal["image", "text"]:
        """Whether the question is about images or about text alone."""
        return "image" if self.images else "text"


def ask_digit(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for the digit at one of the four positions."""
    position = rng.randrange(DIGITS_PER_IMAGE)
    return f"what digit is {POSITIONS[position]} ?", str(digits[position])


def ask_row(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for the two digits of a row."""
    return _ask_line(rng, digits, ROWS)


def ask_column(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for the two digits of a column."""
    return _ask_line(rng, digits, COLUMNS)


def ask_all(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for all four digits in reading order."""
    return "read all digits .", _spaced(digits)


def ask_largest(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for the largest digit."""
    return "what is the largest digit ?", str(max(digits))


def ask_smallest(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for the smallest digit."""
    return "what is the smallest digit ?", str(min(digits))


def ask_count(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask how many digits are even."""
    return "how many even digits ?", str(_count_even(digits))


def ask_two_images(rng: random.Random, digits: Sequence[int]) -> tuple[str, str]:
    """Ask for one digit of one of two images; ``digits`` lists those of both images."""
    image, position = rng.randrange(len(ORDINALS)), rng.randrange(DIGITS_PER_IMAGE)
    question = f"what digit is {POSITIONS[position]} in the {ORDINALS[image]} image ?"
    return question, str(digits[image * DIGITS_PER_IMAGE + position])


def ask_plus(rng: random.Random, split: Split) -> tuple[str, str]:
    """Ask for the sum of two digits; all 100 pairs belong to both splits."""
    a, b = rng.randrange(10), rng.randrange(10)
    return f"what is {a} plus {b} ?", str(a + b)


def ask_minus(rng: random.Random, split: Split) -> tuple[str, str]:
    """Ask for the difference of two digits, never negative; all pairs belong to both splits."""
    a, b = sorted((rng.randrange(10), rng.randrange(10)), reverse=True)
    return f"what is {a} minus {b} ?", str(a - b)


def ask_times(rng: random.Random, split: Split) -> tuple[str, str]:
    """Ask for the product of two digits; all 100 pairs belong to both splits."""
    a, b = rng.randrange(10), rng.randrange(10)
    return f"what is {a} times {b} ?", str(a * b)


def ask_largest_of(rng: random.Random, split: Split) -> tuple[str, str]:
    """Ask for the largest of four listed digits."""
    digits = _draw_list(rng, split)
    return f"what is the largest of {_spaced(digits)} ?", str(max(digits))


def ask_count_in(rng: random.Random, split: Split) -> tuple[str, str]:
    """Ask how many of four listed digits are even."""
    digits = _draw_list(rng, split)
    return f"how many even digits in {_spaced(digits)} ?", str(_count_even(digits))


def ask_sort(rng: random.Random, split: Split) -> tuple[str, str]:
    """Ask for four listed digits in ascending order."""
    digits = _draw_list(rng, split)
    return f"sort {_spaced(digits)} .", _spaced(sorted(digits))


ImageAsker = Callable[[random.Random, Sequence[int]], tuple[str, str]]
TextAsker = Callable[[random.Random, Split], tuple[str, str]]

IMAGE_KINDS: Mapping[str, ImageAsker] = MappingProxyType(
    {
        "digit": ask_digit,
        "row": ask_row,
        "column": ask_column,
        "read_all": ask_all,
        "largest": ask_largest,
        "smallest": ask_smallest,
        "count": ask_count,
        "two_images": ask_two_images,
    }
)
TEXT_KINDS: Mapping[str, TextAsker] = MappingProxyType(
    {
        "plus": ask_plus,
        "minus": ask_minus,
        "times": ask_times,
        "largest_of": ask_largest_of,
        "count_in": ask_count_in,
        "sort": ask_sort,
    }
)


def images_needed(kind: str) -> int:
    """Return how many images a question of this kind shows: 0, 1 or 2."""
    if kind in TEXT_KINDS:
        return 0
    return 2 if kind == "two_images" else 1


def calibration_questions(n: int, seed: int = 0) -> list[Question]:
    """Draw ``n`` questions about training digits, the kinds taking turns.

    Args:
        n: How many questions.
        seed: The same seed gives the same questions.
    """
    kinds = [*IMAGE_KINDS, *TEXT_KINDS]
    rng = random.Random(f"calibration {seed}")
    return [_draw(rng, kinds[i % len(kinds)], "train") for i in range(n)]


def heldout_questions(n_per_kind: int, seed: int = 0) -> list[Question]:
    """Draw ``n_per_kind`` questions of every kind about digits never seen in training.

    Args:
        n_per_kind: How many questions of each of the 14 kinds.
        seed: The same seed gives the same questions.

    Returns:
        The questions, ordered by kind: image kinds first, then text kinds.
    """
    rng = random.Random(f"held-out {seed}")
    kinds = [*IMAGE_KINDS, *TEXT_KINDS]
    return [_draw(rng, kind, "held-out") for kind in kinds for _ in range(n_per_kind)]


def _draw(rng: random.Random, kind: str, split: Split) -> Question:
    if kind in TEXT_KINDS:
        return Question(kind, *TEXT_KINDS[kind](rng, split))
    pool = load_digits(split)
    chosen = [rng.randrange(len(pool)) for _ in range(images_needed(kind) * DIGITS_PER_IMAGE)]
    question, answer = IMAGE_KINDS[kind](rng, [int(pool.labels[i]) for i in chosen])
    return Question(kind, question, answer, _compose_grids(pool, chosen))


def _compose_grids(pool: DigitSet, chosen: Sequence[int]) -> tuple[Image.Image, ...]:
    starts = range(0, len(chosen), DIGITS_PER_IMAGE)
    return tuple(
        compose_grid([pool.images[i] for i in chosen[start : start + DIGITS_PER_IMAGE]])
        for start in starts
    )


def _ask_line(
    rng: random.Random, digits: Sequence[int], lines: Mapping[str, tuple[int, int]]
) -> tuple[str, str]:
    name = rng.choice(list(lines))
    return f"read the {name} .", _spaced([digits[i] for i in lines[name]])


def _draw_list(rng: random.Random, split: Split) -> list[int]:
    """Draw four digits; every seventh of the 10,000 lists is held out."""
    while True:
        number = rng.randrange(10_000)
        if (number % 7 == 0) == (split == "held-out"):
            return [int(digit) for digit in f"{number:04d}"]


def _count_even(digits: Sequence[int]) -> int:
    return sum(digit % 2 == 0 for digit in digits)


def _spaced(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))
