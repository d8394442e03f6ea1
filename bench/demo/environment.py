"""Where and with what the demo's numbers were made."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from modes_fx.bench.demo.report import Environment

_LIBRARIES = ("modes-fx", "torch", "transformers", "numpy")


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
    )


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or "unknown"
