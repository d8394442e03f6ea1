"""Plots have titles, labelled axes and every method."""

import pytest

from modes_fx.bench.demo.comparison import METHODS
from modes_fx.bench.demo.plots import draw_plots


@pytest.fixture
def plots(report):
    return draw_plots(report)


def test_every_panel_has_a_title_and_labelled_axes(plots):
    for name, figure in plots.items():
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert all(axes.get_title() and axes.get_xlabel() for axes in panels), name
        assert panels[0].get_ylabel() or panels[0].get_yticklabels(), name


@pytest.mark.parametrize("name", ["accuracy", "kl"])
def test_the_legend_names_every_method(plots, name):
    (legend,) = plots[name].legends
    assert set(METHODS) <= {text.get_text() for text in legend.get_texts()}
