"""The bench of the search counts what each search asked for, and its page shows every number."""

import json
from types import SimpleNamespace

import pytest
import torch

from modes_fx.bench.search import compare_searches, measure_searches, render


class Tilted:
    """Stands in for a plane: skip ratio and KL grow evenly, in four samples alike."""

    def at(self, place: tuple[float, float]) -> SimpleNamespace:
        u, v = place
        kl = u**3 + 2 * v**3
        difference = SimpleNamespace(samples=range(4), kl_sums=torch.full((4,), kl))
        return SimpleNamespace(skip_ratio=0.6 * u + 0.4 * v, kl=kl, difference=difference)


def test_both_find_the_optimum_and_one_takes_a_quarter() -> None:
    rows = compare_searches(Tilted(), [0.75, 0.5], size=100, surface="a plane")
    assert [row.target for row in rows] == [0.5, 0.75]
    assert all(row.same_cell or row.kl_ratio < 1.01 for row in rows)
    assert all(row.samples == 4 for row in rows)
    swept = sum(row.sweep_cells for row in rows)
    assert sum(row.bounded_cells for row in rows) <= swept / 4
    text = render(rows)
    assert f"| 0.5 | {rows[0].sweep_cells} | {rows[0].sweep_kl:.6f} |" in text
    assert f"| all | {swept} |" in text
    assert "100 x 100 thresholds, on 4 calibration questions" in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_measures_the_trained_models(tmp_path) -> None:
    measure_searches(tmp_path, samples=6, size=12, models="second")
    rows = json.loads((tmp_path / "search.json").read_text())
    assert [row["target"] for row in rows] == [0.5, 0.75, 0.88] * 2
    for row in rows:
        assert row["bounded_kl"] >= row["sweep_kl"] * (1 - row["kl_fall"]) - 1e-9
    assert "Second model" in (tmp_path / "search.md").read_text()
