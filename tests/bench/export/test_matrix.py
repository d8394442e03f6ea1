"""The table of what can be exported says the worst of its cells, and why there is none."""

import pytest

from modes_fx.bench.export.matrix import Cell, add_to, measure, render, subject

FORMATS = ("pt2", "onnx")


def cell(format: str, target: float, **found) -> Cell:
    return Cell(model="tiny", component="text", format=format, target=target, **found)


def test_a_cell_holds_the_larger_error_of_both_targets() -> None:
    cells = [
        cell("pt2", 0.0, error=2e-7, megabytes=1.0, seconds=3.0),
        cell("pt2", 0.75, error=5e-6, megabytes=1.0, seconds=4.0),
    ]
    assert "| tiny | text | 5e-06, 1.0 MB, 4 s |  |" in render(cells, FORMATS)


def test_what_could_not_be_exported_is_numbered_with_its_reason() -> None:
    cells = [
        cell("pt2", 0.0, error=2e-7, megabytes=1.0, seconds=3.0),
        cell("onnx", 0.0, reason="no such operator"),
    ]
    page = render(cells, FORMATS)
    assert "| tiny | text | 2e-07, 1.0 MB, 3 s, at 0% only | no (1) |" in page
    assert page.endswith("1. no such operator\n")


def test_a_cell_takes_the_place_of_an_earlier_one(tmp_path) -> None:
    for target, error in ((0.0, 1e-7), (0.75, 1e-3), (0.75, 2e-7)):
        found = {"error": error, "megabytes": 1.0, "seconds": 1.0}
        add_to(tmp_path, cell("pt2", target, **found).model_copy(update={"model": "gpt_oss"}))
    page = (tmp_path / "export-matrix.md").read_text()
    assert "| gpt_oss | text | 2e-07, 1.0 MB, 1 s |  |  |  |" in page
    assert page.count("gpt_oss") == 1


@pytest.mark.slow
def test_a_tiny_model_is_exported_and_verified() -> None:
    found = measure("gpt_oss", subject("gpt_oss"), "decode", "onnx", 0.75)
    assert found.error is not None, found.reason
    assert found.error <= 1e-4
    assert found.megabytes > 0
