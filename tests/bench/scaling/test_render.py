"""The tables and the plot of scaling hold every line."""

import io

from rich.console import Console

from modes_fx.bench.scaling.render import draw, print_scaling, save_scaling, scaling_markdown
from modes_fx.bench.scaling.report import Scaling
from tests.bench.scaling.test_report import point, scaling

FOUND = scaling(
    point(1, 1.0, impl="hf_eager"),
    point(4, 4.0, impl="hf_eager"),
    point(1, 0.5, skip=0.5),
    point(4, 1.0, skip=0.5, agrees=False, speedup=None),
    point(2, 3.0, axis="layers", layers=2),
)


def test_a_row_is_a_line_with_its_exponent() -> None:
    markdown = scaling_markdown(FOUND)
    assert "| way | 1 | 4 | p |" in markdown
    assert "| hf_eager | 1 | 4 | 1.00 |" in markdown
    assert "| ours, skip 0.5 | 0.5 (1.50x) | 1 (differs) | 0.50 |" in markdown
    assert "**layers (8 experts, 2 tokens)**" in markdown
    assert "**Failed**" in markdown


def test_the_terminal_shows_the_same() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_scaling(FOUND, console)
    assert "0.5 (1.50x)" in console.file.getvalue()
    assert "FAILED: ours, skip 0.5 differs" in console.file.getvalue()


def test_each_axis_is_a_plot_and_each_way_a_line() -> None:
    tokens, layers = draw(FOUND).axes
    assert [len(line.get_xdata()) for line in tokens.lines] == [2, 2]
    assert len(layers.lines) == 1


def test_all_is_saved(tmp_path) -> None:
    save_scaling(FOUND, tmp_path)
    assert Scaling.model_validate_json((tmp_path / "scaling.json").read_text()) == FOUND
    assert (tmp_path / "scaling.png").stat().st_size > 1000
    assert (tmp_path / "scaling.md").exists()
