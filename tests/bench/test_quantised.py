"""The table of skip ratios times bits."""

from pathlib import Path

import pytest

from modes_fx.bench.demo_model import load_model
from modes_fx.bench.quantised import BITS, compare_bits, count_choices, render
from modes_fx.calibration import preset_policy

ROW = {
    "target": 0.75,
    "skip_ratio": 0.747,
    "accuracy": 0.95,
    "change": -0.012,
    "change_interval": (-0.03, 0.004),
    "kl": 0.0123,
}


def test_every_cell_is_a_row() -> None:
    rows = [ROW | {"bits": bits, "expert_bytes": 3_200_000} for bits in BITS]
    lines = render({"rows": rows}).splitlines()
    assert len(lines) == 2 + len(BITS)
    assert lines[3] == "| 8 | 3.2 | 75% | 74.7% | 95.0% | -1.2 [-3.0, +0.4] | 0.0123 |"


def test_every_choice_is_counted() -> None:
    model, processor = load_model()
    counts = count_choices(model, processor, questions=2)
    assert len(counts) == model.config.text_config.num_hidden_layers
    (total,) = {int(count.sum()) for count in counts.values()}
    assert total > 0
    assert total % model.config.text_config.num_experts_per_tok == 0
    assert all(len(count) == model.config.text_config.num_experts for count in counts.values())


@pytest.mark.parametrize(
    ("bits", "reason"), [(["16", "2"], "not 2"), (["8"], "name them first")], ids=str
)
def test_bits_that_cannot_be_compared_are_refused(bits, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        compare_bits(None, 1, lambda: pytest.fail("loaded"), lambda found: None, bits)


@pytest.mark.slow
def test_int8_changes_little_and_four_bits_more(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model, _ = load_model()
    written: list[int] = []
    found = compare_bits(
        preset_policy(model), 1, load_model, lambda part: written.append(len(part["rows"]))
    )
    kept = {row["bits"]: row for row in found["rows"] if row["target"] == 0}
    assert list(kept) == list(BITS)
    assert kept["16"]["kl"] == pytest.approx(0, abs=1e-8)
    assert 0 < kept["8"]["kl"] < kept["4"]["kl"]
    assert kept["8"]["expert_bytes"] < 0.55 * kept["16"]["expert_bytes"]
    assert kept["4"]["expert_bytes"] < kept["mixed"]["expert_bytes"] < kept["8"]["expert_bytes"]
    assert written == sorted(written)
