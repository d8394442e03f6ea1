"""Measure one type in a process of its own: ``python -m modes_fx.bench.coverage.worker TYPE``."""

import json
import sys

import torch

from modes_fx.bench.coverage.measure import measure
from modes_fx.cli.quiet import quiet_libraries


def main(model_type: str) -> None:
    """Print the record of a type as JSON, as the last line of standard output."""
    quiet_libraries()
    torch.set_num_threads(1)
    print(json.dumps(measure(model_type).to_json()))


if __name__ == "__main__":
    main(sys.argv[1])
