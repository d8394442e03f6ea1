"""Large pages: a hint that changes no value."""

import re
import sys
from pathlib import Path

import pytest
import torch

from modes_fx.kernels.pages import prefer_huge_pages

MADVISE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _huge_kib(memory: torch.Tensor) -> int:
    """Kibibytes of the mapping around a tensor that are in large pages."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if place := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(place[1], 16) <= memory.data_ptr() + (4 << 20) < int(place[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(
    sys.platform != "linux" or not MADVISE.exists() or "[never]" in MADVISE.read_text(),
    reason="this system has no transparent huge pages",
)
def test_new_memory_comes_in_large_pages() -> None:
    memory = prefer_huge_pages(torch.empty(32 << 20, dtype=torch.uint8))

    memory.zero_()

    assert _huge_kib(memory) >= 16 << 10


@pytest.mark.parametrize("size", [0, 1, (4 << 20) + 3])
def test_values_stay_whatever_the_size(size: int) -> None:
    memory = torch.arange(size, dtype=torch.int32)

    assert prefer_huge_pages(memory) is memory
    assert torch.equal(memory, torch.arange(size, dtype=torch.int32))
