"""The table of policies says what was measured, also where a method falls short."""

from modes_fx.bench.policies import render

ENTRY = {
    "model": "a model",
    "draw": 0,
    "method": "some rule",
    "target": 0.75,
    "skip_ratio": 0.744,
    "by_modality": {"text": 0.6, "vision": 0.9},
    "kl": 0.0123,
    "accuracy": 0.9,
    "ratio": 0.5,
    "interval": (0.25, 0.75),
    "ahead": 0.012,
    "ahead_interval": (-0.004, 0.03),
    "reached": False,
    "note": "",
}


def test_every_number_is_in_the_table_of_its_model_and_target() -> None:
    text = render([ENTRY, {**ENTRY, "model": "another", "reached": True}], 120, 280)
    assert "calibrated on 120 training questions a draw, measured on 280 held-out" in text
    assert "## a model, 75%" in text
    assert (
        "| some rule (as far as it goes) | 0 | 74.4% | 60.0% / 90.0% | 0.01230 | 0.50 [0.25, 0.75] "
        "| 90.0% | +1.2 [-0.4, +3.0] |"
    ) in text
    assert text.count("(as far as it goes)") == 1
