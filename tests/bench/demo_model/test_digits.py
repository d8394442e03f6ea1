"""The digits are the 5,000 of the data file, each on one side of the split."""

import numpy as np
import pytest

from modes_fx.bench.demo_model.digits import compose_grid, load_digits


def test_the_split_is_disjoint_and_complete() -> None:
    train, held_out = load_digits("train"), load_digits("held-out")
    assert (len(train), len(held_out)) == (4_000, 1_000)
    images = np.concatenate([train.images, held_out.images])
    assert len(np.unique(images.reshape(5_000, -1), axis=0)) == 5_000
    labels = np.concatenate([train.labels, held_out.labels])
    assert np.bincount(labels).tolist() == [500] * 10


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match='"train" or "held-out", not \'test\''):
        load_digits("test")


def test_a_grid_shows_its_digits_in_reading_order() -> None:
    digits = [np.full((28, 28), ink, dtype=np.uint8) for ink in (0, 80, 160, 240)]
    grid = np.asarray(compose_grid(digits))
    assert grid.shape == (128, 128, 3)
    assert grid[[32, 32, 96, 96], [32, 96, 32, 96], 0].tolist() == [0, 80, 160, 240]


def test_a_grid_holds_exactly_four_digits() -> None:
    with pytest.raises(ValueError, match="holds 4 digits, got 3"):
        compose_grid([np.zeros((28, 28), dtype=np.uint8)] * 3)
