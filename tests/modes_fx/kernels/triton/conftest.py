"""Every test here runs the kernels themselves: on a GPU, or on a CPU in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch

from tests.interpreter import make_bfloat16_right


@pytest.fixture(autouse=True)
def interpreted(tmp_path_factory, monkeypatch) -> Iterator[None]:
    """Make bfloat16 right, fill uninitialised memory with NaN, and keep the user's caches out."""
    if not torch.cuda.is_available():
        make_bfloat16_right()
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("MODES_FX_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("MODES_FX_CONFIG_DIR", str(folder / "configs"))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
