"""The report's three forms hold what was found."""

import pytest

from modes_fx.calibration.report import CalibrationReport, write_report
from modes_fx.calibration.report.schema import (
    Bounds,
    Choice,
    ComparedRow,
    Comparison,
    Data,
    Evaluated,
    Scores,
    Target,
    UpdateOfTokens,
)

SCORES = Scores(
    kl=0.0123,
    agreement=0.97,
    accuracy=0.9,
    skip_ratio=0.501,
    skip_ratio_by_modality={"text": 0.4, "vision": 0.6},
)
LAYERS = {f"layers.{n}.experts": {"text": 0.1 / (n + 1), "vision": 0.0} for n in range(3)}


@pytest.fixture
def report() -> CalibrationReport:
    row = ComparedRow(
        method="one threshold",
        target=0.5,
        scores=SCORES,
        kl_ratio=0.61,
        kl_ratio_interval=(0.4, 0.8),
        reached=False,
        note="as published",
    )
    return CalibrationReport(
        created="2026-01-02T03:04:05+00:00",
        model="org/model",
        layers=3,
        experts=[8],
        data=Data(
            name="chats.jsonl",
            samples=9,
            held_back=4,
            tokens={"text": 90},
            answer_tokens=30,
            seed=0,
        ),
        options={"method": "default"},
        alpha=LAYERS,
        experts_hit={path: {"text": 8, "vision": 6} for path in LAYERS},
        updates={
            path: {"text": UpdateOfTokens(magnitude=0.25, angle=12.5, tokens=90)} for path in LAYERS
        },
        search=[
            Evaluated(
                tau={"text": tau, "vision": 0.2},
                kl=tau / 10,
                skip_ratio=tau,
                skip_ratio_by_modality={"text": tau / 2, "vision": 0.9},
            )
            for tau in (0.0, 0.2, 0.4)
        ],
        choices=[Choice(name="extras", options={"none": 0.0, "means 1": 0.4}, chosen="means 1")],
        targets=[
            Target(
                target=0.5,
                tau={"text": 0.1, "vision": 0.2},
                refined=False,
                scores=SCORES,
                kl_by_half={"fit": 0.01, "held back": 0.02},
                kl_before_extras=0.03,
                skip_ratio_by_layer={path: {"text": 0.5, "vision": 1.0} for path in LAYERS},
                experts_hit={path: {"text": 5, "vision": 0} for path in LAYERS},
                bounds=Bounds(kl=0.029, gap=0.043, measured=37, kl_fall=0.126, skip_ratio_fall=0.0),
            )
        ],
        cost={"passes": 40.0},
        peak_memory={"host": 3 << 30},
        reference_bytes={"memory": 0, "disk": 5 << 20},
        processes=2,
        versions={"torch": "2.13.0"},
        comparison=Comparison(samples=9, accuracy=1.0, rows=[row]),
    )


@pytest.fixture
def folder(report, tmp_path):
    write_report(report, tmp_path / "out")
    return tmp_path / "out"


def test_json_is_the_report(report, folder) -> None:
    text = (folder / "report.json").read_text()
    assert CalibrationReport.model_validate_json(text) == report


@pytest.mark.parametrize(
    "shown",
    [
        "# Calibration of org/model",
        "3 MoE layers of 8 experts",
        "4 of the samples were held back",
        "| 0.5 | 50.1 % | text 40.0 %, vision 60.0 % | 0.0123 | 0.01 / 0.02 | 0.03 |",
        "| 0.61 (0.4 to 0.8) | 90.0 % | as published skips less than asked for |",
        "| 0.5 | 0.029 | 4.3 % | 12.6 % | 37 |",
        "| extras | none: 0; means 1: 0.4 | means 1 |",
        "| `layers.2.experts` | 0.03333 | 0 |",
        "| `layers.1.experts` | text 50.0 %, vision 100.0 % |",
        "| `layers.1.experts` | text 8, vision 6 | text 5, vision 0 |",
        "| `layers.1.experts` | 0.25, 12.5° |",
        "| peak memory of the host, a process | 3 GiB |",
        "| 0 B / 5 MiB |",
    ],
)
def test_markdown_shows_what_was_found(folder, shown) -> None:
    assert shown in (folder / "report.md").read_text()


def test_the_page_needs_no_other_file(folder) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "<table>" in page
    assert "<title>MoDES-FX calibration</title>" in page


def test_text_alone_has_plots_too(report, tmp_path) -> None:
    def text(section):
        return section.model_copy(update={"skip_ratio_by_modality": {"text": 0.5}})

    targets = [t.model_copy(update={"scores": text(t.scores)}) for t in report.targets]
    search = [text(point) for point in report.search]
    write_report(report.model_copy(update={"targets": targets, "search": search}), tmp_path)
    assert "![search.png](search.png)" in (tmp_path / "report.md").read_text()


def test_other_searches_have_no_bounds_to_show(report, tmp_path) -> None:
    targets = [target.model_copy(update={"bounds": None}) for target in report.targets]
    write_report(report.model_copy(update={"targets": targets}), tmp_path)
    assert "leaves open" not in (tmp_path / "report.md").read_text()


def test_without_a_comparison_there_is_none(report, tmp_path) -> None:
    write_report(report.model_copy(update={"comparison": None}), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Compared" not in text
    assert "![updates.png](updates.png)" in text
    assert not (tmp_path / "methods.png").exists()


def test_updates_that_are_not_known_are_not_shown(report, tmp_path) -> None:
    write_report(report.model_copy(update={"updates": {}}), tmp_path)
    assert "updates.png" not in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "updates.png").exists()
