"""What a calibration chooses from, and how what was chosen is stored."""

import pytest

from modes_fx.calibration import CalibrationOptions
from modes_fx.calibration.options import Candidate


def test_extras_begin_with_none_and_then_the_likeliest() -> None:
    none, likeliest, *others = CalibrationOptions().extras
    assert none == Candidate(0.0, 0.0, 0.0)
    assert likeliest == Candidate(0.25, 0.5, 1.0)
    assert len({none, likeliest, *others}) == 8


@pytest.mark.parametrize(
    ("options", "extras"),
    [
        ({"method": "modes"}, [(0, 0, 0)]),
        ({"method": "modes", "mean_strength": 0.5}, [(0, 0.5, 0.5)]),
        ({"kept_mass_exponent": 0.25, "mean_strength": (0.5, 1.0)}, [(0.25, 0.5, 1)]),
        ({"mean_strength": 0.0}, [(0, 0, 0), (0.25, 0, 0)]),
        ({"mean_strength": 1.0}, [(0, 1, 1), (0.25, 1, 1)]),
    ],
)
def test_what_is_given_is_not_chosen(options, extras) -> None:
    assert list(CalibrationOptions(**options).extras) == extras


def test_given_the_exponent_every_strength_is_tried_with_it() -> None:
    extras = CalibrationOptions(kept_mass_exponent=0.5).extras
    assert {candidate.kept_mass_exponent for candidate in extras} == {0.5}
    assert len(extras) == 4


def test_one_kind_of_tokens_has_one_strength() -> None:
    candidate = Candidate(0.25, 0.5, 1.0)
    assert candidate.of(["text", "vision"]) == candidate
    assert candidate.of(["text"]) == Candidate(0.25, 0.5, 0.5)
    assert candidate.of(["vision", "audio"]) == Candidate(0.25, 1.0, 1.0)


def test_a_strength_is_one_number_where_it_is_the_same_for_all() -> None:
    assert Candidate(0.25, 0.5, 0.5).strength(["text", "vision"]) == 0.5
    by_modality = Candidate(0.25, 0.5, 1.0).strength(["text", "vision", "audio"])
    assert by_modality == {"text": 0.5, "vision": 1.0, "audio": 1.0}
