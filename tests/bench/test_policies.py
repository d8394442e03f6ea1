"""The table of policies says what was measured, also where a method falls short."""

import json

from modes_fx.bench.policies import add_to, render
from modes_fx.calibration.baselines import MODES
from modes_fx.calibration.compare import OURS

ENTRY = {
    "model": "a model",
    "draw": 0,
    "samples": 120,
    "questions": 280,
    "quick": False,
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


OURS_ENTRY = {**ENTRY, "method": OURS, "ratio": 1.0, "interval": (1.0, 1.0), "reached": True}
MODES_ENTRY = {**ENTRY, "method": MODES, "kl": 0.5, "ratio": 0.02, "reached": True}


def of_model(name: str, **other) -> list[dict]:
    rows = [OURS_ENTRY, {**ENTRY, **other}, MODES_ENTRY]
    return [{**row, "model": name} for row in rows]


def test_every_number_is_in_the_table_of_its_model_and_target() -> None:
    text = render([*of_model("a model"), *of_model("another", reached=True)])
    assert "calibrated on 120 training questions a draw, measured on 280 held-out" in text
    assert "## a model, 75%" in text
    assert (
        "| some rule (as far as it goes) | 120, 0 | 74.4% | 60.0% / 90.0% | 0.01230 | "
        "0.50 [0.25, 0.75] | 90.0% | +1.2 [-0.4, +3.0] |"
    ) in text
    assert text.count("(as far as it goes)") == 1
    assert "--quick" not in text


def test_the_best_other_method_decides_whether_the_aim_is_met() -> None:
    text = render(
        [
            *of_model("met", reached=True),
            *of_model("wide", reached=True, interval=(0.2, 1.1)),
            *of_model("worse", reached=True, ahead_interval=(-0.03, -0.01)),
            *of_model("short"),
        ]
    )
    assert "| met | 75% | 120, 0 | some rule | 0.50 [0.25, 0.75] | +1.2 | yes | 0.02" in text
    assert "| wide | 75% | 120, 0 | some rule | 0.50 [0.20, 1.10] | +1.2 | no |" in text
    assert "| worse | 75% | 120, 0 | some rule | 0.50 [0.25, 0.75] | +1.2 | no |" in text
    assert f"| short | 75% | 120, 0 | {MODES} |" in text, "what skips less is not compared with"


def test_draws_are_added_in_place_of_earlier_ones(tmp_path) -> None:
    add_to(tmp_path, of_model("a model", kl=1.0, quick=True))
    add_to(tmp_path, [{**row, "draw": 1} for row in of_model("a model")])
    add_to(tmp_path, of_model("a model", kl=2.0, quick=True))
    rows = json.loads((tmp_path / "policies.json").read_text())
    found = [(row["draw"], row["kl"]) for row in rows if row["method"] == "some rule"]
    assert found == [(0, 2.0), (1, 0.0123)]
    assert "`--quick` left them out" in (tmp_path / "policies.md").read_text()
