"""Printed bodies: files that survive, are shared, and hold what is said of them."""

import sys

import pytest
import torch

from modes_fx.kernels.triton import printer
from modes_fx.kernels.triton.plan import ParameterFacts, UnsupportedBodyError
from tests.modes_fx.kernels.triton.bodies import BODIES, Sizes, shapes

SIZES = Sizes(T=5, K=2, E=4, H=16, I=8)


def printed(name: str, sizes: Sizes = SIZES) -> printer.PrintedBody:
    facts = tuple(ParameterFacts(shape, torch.float32) for shape in shapes(name, sizes))
    text = BODIES[name](sizes).to_json()
    return printer.print_body(text, facts, torch.float32, torch.float32, sizes.H)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(printer.CACHE_VARIABLE, str(tmp_path))
    printer.print_body.cache_clear()
    for name in [name for name in sys.modules if name.startswith("modes_fx_body_")]:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "bodies"
    printer.print_body.cache_clear()


def test_a_body_is_written_once_and_found_again(cache) -> None:
    source = printed("swiglu").source
    (path,) = cache.iterdir()
    assert path.read_text() == source
    written = path.stat().st_mtime_ns
    printer.print_body.cache_clear()
    sys.modules.pop(path.stem)
    assert printed("swiglu").source == source
    assert path.stat().st_mtime_ns == written


def test_a_damaged_file_is_written_again(cache) -> None:
    printed("swiglu")
    (path,) = cache.iterdir()
    path.write_text("def middle(): 1 / 0")
    printer.print_body.cache_clear()
    sys.modules.pop(path.stem)
    assert path.read_text() != printed("swiglu").source or path.read_text().startswith('"""')
    assert "def tail" in path.read_text()


def test_the_source_reads_like_the_body(cache) -> None:
    source = printed("swiglu").source
    assert "from the body of an expert: matmul(p0) slice silu" in source
    assert "t0 = s0 * tl.sigmoid(s0)\n    t1 = t0 * s1\n    return t1" in source


def test_only_weighted_inputs_have_a_prologue(cache) -> None:
    assert printed("swiglu").prologue is None
    assert "t0 = x * w" in printed("two_products_weighted_input").source
    assert printed("two_products_weighted_input").prologue is not None


def test_more_accumulators_than_the_kernels_have_are_refused(cache) -> None:
    from modes_fx.kernels.epilogue import MATMUL, Body, Step

    steps = (
        *(Step(MATMUL, ("x", f"p{i}", True)) for i in range(3)),
        Step("aten.mul.Tensor", ("%0", "%1")),
        Step("aten.mul.Tensor", ("%3", "%2")),
        Step(MATMUL, ("%4", "p3", True)),
    )
    facts = tuple(ParameterFacts((4, 16, 16), torch.float32) for _ in range(4))
    with pytest.raises(UnsupportedBodyError, match=r"reads 3 parts .* have 2 accumulators"):
        printer.print_body(
            Body((True,) * 4, steps).to_json(), facts, torch.float32, torch.float32, 16
        )
