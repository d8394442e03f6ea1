"""What every test of the passes starts from."""

from collections.abc import Iterator

import pytest
import torch

from modes_fx.kernels import cpu


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Nothing captured yet, the same random numbers, no gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def portable(monkeypatch) -> None:
    """Run bodies through PyTorch: the rewrite is tested here, and a kernel for each takes a build.

    Every operation of a body is compared in C++ by the tests of the kernels, and whole models by
    those of the backend.
    """
    monkeypatch.setattr(cpu, "load_kernel", lambda *arguments: False)
