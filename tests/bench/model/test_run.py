"""One run over a tiny model: every way and phase is there, and the numbers fit together."""

import json

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.bench.model import ways
from modes_fx.cli import app

TINY = ["--shape", "tiny", "--layers", "1", "--prompt", "16", "--dtype", "fp32"]
BASELINES = ["hf_eager", "hf_grouped_compiled", "hf_batched_compiled"]
QUICK = ["--compiler", "eager", "--cache-mib", "0.1", "--rounds", "3", "--layout", "default"]


def run(*arguments: str):
    torch.compiler.reset()
    return CliRunner().invoke(app, ["bench", "model", *TINY, *QUICK, *arguments])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "model.json"), "--markdown", str(folder / "model.md")]
    result = run("--skip", "0", "0.5", "--baselines", *BASELINES, *files)
    assert result.exit_code == 0, result.output
    document = json.loads(folder.joinpath("model.json").read_text())
    return document, folder.joinpath("model.md").read_text()


def rows_of(document, phase: str):
    return [row for row in document["rows"] if row["phase"] == phase]


def test_all_ways_are_timed_in_their_phases(measured):
    document, _ = measured
    prefill = [(row["way"], row["skip"]) for row in rows_of(document, "prefill")]
    assert prefill == [
        ("ours", 0.0),
        ("ours", 0.5),
        ("hf_eager", 0.0),
        ("hf_grouped_compiled", 0.0),
    ]
    decode = [(row["way"], row["skip"]) for row in rows_of(document, "decode")]
    assert decode == [*prefill, ("hf_batched_compiled", 0.0)]


def test_outputs_agree_with_transformers_own_code_at_every_skip(measured):
    for row in measured[0]["rows"]:
        assert row["agrees"], row
        assert row["error"] < 1e-4


def test_gains_multiply_to_the_speed_up(measured):
    for row in measured[0]["rows"]:
        if row["way"] == "ours":
            assert row["of_bound"] == pytest.approx(row["speedup"]["median"] / row["bound"])
            assert min(row["kernel_gain"], row["skipping_gain"]) > 0
        else:
            assert row["bound"] is None


def test_the_parts_add_up_and_the_bound_follows_from_them(measured):
    document, _ = measured
    for section in document["phases"]:
        parts = [section[f"{name}_ms"] for name in ("experts", "attention", "rest")]
        assert sum(parts) == pytest.approx(section["total_ms"])
        without_experts = section["total_ms"] - section["experts_ms"]
        for row in rows_of(document, section["phase"]):
            if row["way"] == "ours":
                left = without_experts + section["floor_ms"][str(row["skip"])]
                assert row["bound"] == pytest.approx(section["total_ms"] / left)


def test_the_baseline_is_compiled_and_the_fastest_way_is_shown_beside_it(measured):
    for section in measured[0]["phases"]:
        assert section["baseline"].endswith("_compiled")
        assert section["fastest"].startswith("hf_")


def test_without_a_compiled_way_there_is_no_bound():
    result = run("--skip", "0", "--baselines", "hf_grouped")
    assert result.exit_code == 2
    assert "name one of the baselines that are compiled" in result.output


def test_an_unknown_baseline_is_refused():
    result = run("--baselines", "fastest")
    assert result.exit_code == 2
    assert "there is no baseline fastest; there are hf_eager" in result.output


def test_the_floor_falls_with_what_is_skipped(measured):
    for section in measured[0]["phases"]:
        assert section["floor_ms"]["0.5"] < section["floor_ms"]["0.0"]


def test_the_tables_hold_every_row(measured):
    document, markdown = measured
    assert markdown.count("\n| hf_") + markdown.count("\n| ours ") == len(document["rows"])


def test_a_model_that_computes_something_else_gets_no_speed_up(monkeypatch):
    monkeypatch.setattr(ways.Way, "set_thresholds", lambda way, thresholds: None)
    result = run("--skip", "0.5", "--baselines", "hf_grouped_compiled")
    assert result.exit_code == 1
    assert "FAILED: ours (default) differs in prefill at skip 0.5" in result.output
    assert "differs in prefill at skip 0:" not in result.output
