"""The history of key figures: what a line holds, and what is not worth one."""

import subprocess
from datetime import UTC, datetime

import pytest

from modes_fx.bench.history import Line, append, clean_commit, line_of
from modes_fx.bench.layer import LayerPlan, bench_layer
from modes_fx.bench.layer.report import TRANSFORMERS
from modes_fx.bench.shapes import find_shape

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def bench():
    """A real run of a tiny layer, taken for a quiet one."""
    plan = LayerPlan(
        find_shape("tiny"),
        tokens=(4,),
        skips=(0.0, 0.5),
        baselines=TRANSFORMERS,
        layouts=("default",),
        rounds=3,
        cache=10**4,
    )
    found = bench_layer(plan)
    quiet = [row.model_copy(update={"spread": 0.1}) for row in found.rows]
    return found.model_copy(update={"rows": quiet})


def test_a_line_holds_our_figures_with_commit_date_and_machine(bench) -> None:
    line = line_of(bench, "c0ffee", NOW)
    assert [(f.tokens, f.skip, f.layout) for f in line.figures] == [
        (4, 0.0, "default"),
        (4, 0.5, "default"),
    ]
    ours = bench.rows[0]
    assert line.figures[0].speedup == pytest.approx(ours.speedup.median, abs=1e-3)
    assert (line.commit, line.date) == ("c0ffee", "2026-01-02T00:00:00+00:00")
    assert line.environment == bench.environment


def test_lines_are_added_and_read_again(bench, tmp_path) -> None:
    line, path = line_of(bench, "c0ffee", NOW), tmp_path / "new" / "history.jsonl"
    append(path, line)
    append(path, line)
    assert [Line.model_validate_json(text) for text in path.read_text().splitlines()] == [line] * 2


@pytest.mark.parametrize(
    ("change", "reason"), [({"spread": 0.9}, "spread by more than"), ({"agrees": False}, "differs")]
)
def test_what_is_noisy_or_wrong_is_not_worth_a_line(bench, change, reason) -> None:
    worse = bench.model_copy(update={"rows": [bench.rows[0].model_copy(update=change)]})
    with pytest.raises(ValueError, match=f"nothing is appended: .*{reason}"):
        line_of(worse, "c0ffee", NOW)


def test_only_a_committed_tree_has_a_commit(tmp_path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    with pytest.raises(ValueError, match="commit cannot be found"):
        clean_commit(tmp_path, tmp_path / "history.jsonl")
    git("init", "-q")
    for name in ("code.py", "history.jsonl"):
        (tmp_path / name).write_text("a")
    git("add", "-A")
    git("commit", "-qm", "first")
    (tmp_path / "history.jsonl").write_text("b")
    (tmp_path / "untracked").touch()
    assert len(clean_commit(tmp_path, tmp_path / "history.jsonl")) == 40
    (tmp_path / "code.py").write_text("b")
    with pytest.raises(ValueError, match=r"1 files are not as in .* code\.py.*commit, then"):
        clean_commit(tmp_path, tmp_path / "history.jsonl")
