"""What every test of the passes starts from."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Nothing captured yet, the same random numbers, no gradients."""
    torch.compiler.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield
