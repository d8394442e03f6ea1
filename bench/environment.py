"""Where and with what numbers were made."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Where Linux describes the caches of a processor."""
_LIBRARIES = ("modes-fx", "torch", "transformers", "numpy")


class Section(BaseModel):
    """A part of the report: fields are fixed, unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(Section):
    """Where and with what the numbers were made.

    Attributes:
        processor: the CPU's name.
        cores: how many of them this process may use.
        threads: how many torch uses.
        memory_gib: of the machine.
        platform: operating system and architecture.
        versions: library name to version.
        large_pages: whether torch asks for pages of 2 MB (``THP_MEM_ALLOC_ENABLE``).
    """

    processor: str
    cores: int
    threads: int
    memory_gib: float
    platform: str
    versions: dict[str, str]
    large_pages: bool = False


def describe_environment() -> Environment:
    """Describe this machine and the libraries that matter for the numbers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Environment(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        memory_gib=round(memory / 2**30, 1),
        platform=f"{platform.system()} {platform.machine()}",
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        large_pages=os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
    )


def describe(environment: Environment) -> str:
    """Say it in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    pages = "; pages of 2 MB" if environment.large_pages else ""
    return f"{environment.processor}, {environment.cores} cores; {versions}{pages}"


def last_level_cache() -> int:
    """Return the bytes of the processor's last-level cache.

    Raises:
        ValueError: the system does not tell.
    """
    levels = [
        (int((folder / "level").read_text()), (folder / "size").read_text().strip())
        for folder in CACHES.glob("index*")
    ]
    if not levels:
        raise ValueError("the system does not tell the size of its caches: name it (--cache-mib)")
    size = max(levels)[1]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(size.rstrip("KMG")) * units.get(size[-1], 1)


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or "unknown"
