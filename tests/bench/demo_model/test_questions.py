"""The questions are the same every time, and their answers are right."""

import random

import numpy as np
import pytest

from modes_fx.bench.demo_model.digits import Split, compose_grid, load_digits
from modes_fx.bench.demo_model.questions import (
    IMAGE_KINDS,
    POSITIONS,
    TEXT_KINDS,
    calibration_questions,
    heldout_questions,
    images_needed,
)

DIGITS = [7, 2, 2, 9]


def ask_all_variants(kind: str) -> dict[str, str]:
    """Return every question of an image kind about ``DIGITS`` with its answer."""
    rng = random.Random(0)
    digits = DIGITS if kind != "two_images" else [*DIGITS, 1, 3, 5, 8]
    return dict(IMAGE_KINDS[kind](rng, digits) for _ in range(200))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("digit", dict(zip([f"what digit is {p} ?" for p in POSITIONS], "7229", strict=True))),
        ("row", {"read the top row .": "7 2", "read the bottom row .": "2 9"}),
        ("column", {"read the left column .": "7 2", "read the right column .": "2 9"}),
        ("read_all", {"read all digits .": "7 2 2 9"}),
        ("largest", {"what is the largest digit ?": "9"}),
        ("smallest", {"what is the smallest digit ?": "2"}),
        ("count", {"how many even digits ?": "2"}),
    ],
)
def test_image_questions_have_the_right_answers(kind: str, expected: dict[str, str]) -> None:
    assert ask_all_variants(kind) == expected


def test_questions_about_two_images_name_the_image() -> None:
    answers = ask_all_variants("two_images")
    assert len(answers) == 8
    assert answers["what digit is bottom right in the first image ?"] == "9"
    assert answers["what digit is bottom right in the second image ?"] == "8"


@pytest.mark.parametrize(
    ("kind", "solve"),
    [
        ("plus", lambda a, b: a + b),
        ("minus", lambda a, b: a - b),
        ("times", lambda a, b: a * b),
        ("largest_of", lambda *digits: max(digits)),
        ("count_in", lambda *digits: sum(digit % 2 == 0 for digit in digits)),
        ("sort", lambda *digits: " ".join(map(str, sorted(digits)))),
    ],
)
def test_text_questions_have_the_right_answers(kind: str, solve) -> None:
    rng = random.Random(0)
    for _ in range(100):
        question, answer = TEXT_KINDS[kind](rng, "train")
        numbers = [int(word) for word in question.split() if word.isdigit()]
        assert answer == str(solve(*numbers))


def test_the_same_seed_draws_the_same_questions() -> None:
    assert heldout_questions(2, seed=3) == heldout_questions(2, seed=3)
    assert calibration_questions(30, seed=3) == calibration_questions(30, seed=3)
    assert heldout_questions(2, seed=3) != heldout_questions(2, seed=4)


def test_every_kind_is_drawn_with_the_images_it_needs() -> None:
    kinds = [*IMAGE_KINDS, *TEXT_KINDS]
    for questions in (heldout_questions(2), calibration_questions(2 * len(kinds))):
        assert sorted(q.kind for q in questions) == sorted(2 * kinds)
        for question in questions:
            assert len(question.images) == images_needed(question.kind)
            assert question.modality == ("image" if question.kind in IMAGE_KINDS else "text")
            assert all(i.size == (128, 128) and i.mode == "RGB" for i in question.images)


def test_held_out_questions_show_only_held_out_digits() -> None:
    cells = {
        np.asarray(image)[row : row + 64, column : column + 64, 0].tobytes()
        for question in heldout_questions(4)
        for image in question.images
        for row in (0, 64)
        for column in (0, 64)
    }
    assert cells <= _cells_of("held-out")
    assert cells.isdisjoint(_cells_of("train"))


def test_held_out_lists_are_never_drawn_in_training() -> None:
    rng = random.Random(0)
    drawn = {
        split: {TEXT_KINDS["sort"](rng, split)[0] for _ in range(3_000)}
        for split in ("train", "held-out")
    }
    assert drawn["train"].isdisjoint(drawn["held-out"])


def _cells_of(split: Split) -> set[bytes]:
    images = load_digits(split).images
    return {np.asarray(compose_grid([i] * 4))[:64, :64, 0].tobytes() for i in images}
