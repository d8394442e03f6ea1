"""Where there is no GPU, the kernels of these tests run in Triton's interpreter."""

import pytest
import torch

from modes_fx.bench.gpu.shapes import Layer
from tests.interpreter import make_bfloat16_right


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, tmp_path):
    """Make bfloat16 right, and keep the user's caches and configurations out."""
    if not torch.cuda.is_available():
        make_bfloat16_right()
    monkeypatch.setenv("MODES_FX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MODES_FX_CONFIG_DIR", str(tmp_path / "configs"))


@pytest.fixture
def small() -> Layer:
    return Layer("small", experts=4, top_k=2, hidden=32, intermediate=16, form="gated")
