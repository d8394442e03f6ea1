"""modes-fx bench: what it writes, what it refuses, and how its options are spelled."""

import json

import pytest
import torch
from typer.testing import CliRunner

from modes_fx.bench.layer import IMPLEMENTATIONS, Implementation, register
from modes_fx.cli import app

SMALL = ["--shape", "tiny", "--rounds", "3", "--cache-mib", "0.01", "--layout", "default"]
PLAIN = ["--baselines", "hf_eager", "hf_grouped", "hf_zeroed"]


def bench_layer(*arguments: str):
    torch.compiler.reset()
    return CliRunner().invoke(app, ["bench", "layer", *SMALL, *arguments])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One run with every option that takes several values given as in a shell."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "layer.json"), "--markdown", str(folder / "layer.md")]
    result = bench_layer("--tokens", "1", "16", "--skip", "0", "0.5", *PLAIN, *files)
    assert result.exit_code == 0, result.output
    document = json.loads(folder.joinpath("layer.json").read_text())
    return document, folder.joinpath("layer.md").read_text(), result.output


def test_there_is_a_row_for_all_that_can_be_told_apart(measured):
    rows = [(row["tokens"], row["impl"], row["skip"]) for row in measured[0]["rows"]]
    assert rows == [
        (tokens, *row)
        for tokens in (1, 16)
        for row in (
            ("ours", 0.0),
            ("ours", 0.5),
            ("hf_eager", 0.0),
            ("hf_grouped", 0.0),
            ("hf_zeroed", 0.5),
        )
    ]


def test_a_row_says_what_was_measured(measured):
    row = measured[0]["rows"][1]
    assert (row["shape"], row["dtype"], row["threads"]) == ("tiny", "bfloat16", 1)
    assert (row["impl"], row["layout"], row["achieved_skip"]) == ("ours", "default", 0.5)
    assert row["agrees"]
    assert row["max_error"] < measured[0]["tolerance"]
    assert set(row["speedups"]) == {"hf_eager", "hf_grouped"}
    for name in ("cpu_ms", "wall_ms", "gflops", "gbps", "routing_ms"):
        assert row[name] > 0, name


def test_rates_are_useful_work_over_time(measured):
    for row in measured[0]["rows"]:
        pairs = row["tokens"] * 2 * (1 - row["achieved_skip"])
        flops = pairs * 2 * 3 * 64 * 32
        assert row["gflops"] == pytest.approx(flops / row["cpu_ms"] / 1e6)


def test_speed_ups_are_over_the_faster_of_transformers_two_ways(measured):
    for size in measured[0]["sizes"]:
        assert size["baseline"] in ("hf_eager", "hf_grouped")
        for row in measured[0]["rows"]:
            if row["tokens"] == size["tokens"] and row["impl"] == "ours":
                assert row["speedup"] == row["speedups"][size["baseline"]]


def test_the_tables_hold_every_row(measured):
    _, markdown, output = measured
    assert markdown.count("| ours |") == output.count("ours ") == 4
    assert "GEMM ceiling: torch.mm" in markdown
    assert "Bandwidth ceiling: " in markdown


@pytest.fixture
def registered():
    """Registers implementations for one test."""
    before = dict(IMPLEMENTATIONS)
    yield register
    IMPLEMENTATIONS.clear()
    IMPLEMENTATIONS.update(before)


def test_no_speed_up_is_given_where_outputs_differ(registered, tmp_path):
    def prepare(layer, layout):
        return lambda call: 1.05 * layer.copies[call.copy](call.x, call.index, call.weight)

    registered(Implementation("wrong", "5 % too large", prepare, "none"))
    file = tmp_path / "layer.json"
    result = bench_layer(
        "--tokens", "4", "--skip", "0", "--baselines", "hf_eager", "wrong", "--json", str(file)
    )
    assert result.exit_code == 1
    assert "FAILED: wrong (default) differs at 4 tokens and skip 0: error 0.05" in result.output
    rows = {row["impl"]: row for row in json.loads(file.read_text())["rows"]}
    assert not rows["wrong"]["agrees"]
    assert rows["wrong"]["speedups"] == {}
    assert rows["wrong"]["speedup"] is None
    assert set(rows["ours"]["speedups"]) == {"hf_eager"}


def test_ours_can_be_the_one_that_is_wrong(registered):
    def prepare(layer, layout):
        return lambda call: torch.zeros_like(call.x)

    registered(Implementation("ours", "nothing at all", prepare, "gated"))
    result = bench_layer("--tokens", "4", "--skip", "0.5", "--baselines", "hf_eager")
    assert result.exit_code == 1
    assert "FAILED: ours (default) differs at 4 tokens and skip 0.5" in result.output
    assert "differs" in result.output.split("FAILED")[0]


def test_what_is_not_there_is_said_and_the_rest_is_timed(registered):
    from modes_fx.bench.layer.weights import NotAvailableError

    def prepare(layer, layout):
        raise NotAvailableError("not installed: pip install elsewhere")

    registered(Implementation("elsewhere", "another library", prepare, "none"))
    result = bench_layer("--tokens", "1", "--skip", "0", "--baselines", "elsewhere")
    assert result.exit_code == 0
    assert "left out: elsewhere (default): not installed: pip install elsewhere" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "huge"], "there is no shape 'huge'"),
        (["--baselines", "fastest"], "there is no implementation fastest"),
        (["--skip", "1"], "Invalid value for '--skip'"),
        (["--dtype", "int8"], "Invalid value for '--dtype'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    result = bench_layer("--tokens", "1", *arguments)
    assert result.exit_code == 2
    assert message in result.output
