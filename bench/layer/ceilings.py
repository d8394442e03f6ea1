"""What the machine can do at best: compute in a GEMM, and read from memory.

Both ceilings are measured in the same rounds as the implementations, so that they see the same
disturbances. The buffers are allocated as weights are, in pages of the same size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from modes_fx.bench.layer.calls import CACHES
from modes_fx.bench.shapes import LayerShape
from modes_fx.bench.timing import ClockName, Stopwatch, interleaved

GEMM_ROWS = (16, 64, 256, 1024, 2048)
PROBE_ROUNDS = 5


@dataclass(frozen=True)
class Ceiling:
    """The fastest way found to do one thing.

    Attributes:
        name: which way.
        run: does it once.
        amount: operations or bytes of one run.
    """

    name: str
    run: Callable[[], object]
    amount: float


def gemm_ceiling(shape: LayerShape, dtype: torch.dtype, clock: ClockName) -> Ceiling:
    """Find the fastest of ``torch.mm`` at both products of an expert, over the number of rows M.

    Args:
        shape: the layer.
        dtype: of both factors.
        clock: what tells the fastest.
    """
    ways = []
    for inputs, outputs in ((shape.hidden, 2 * shape.width), (shape.width, shape.hidden)):
        matrix = torch.randn(outputs, inputs).to(dtype).T
        for rows in GEMM_ROWS:
            left = torch.randn(rows, inputs).to(dtype)
            out = torch.empty(rows, outputs, dtype=dtype)
            name = f"torch.mm [{rows}, {inputs}] x [{inputs}, {outputs}]"
            run = partial(torch.mm, left, matrix, out=out)
            ways.append(Ceiling(name, run, 2.0 * rows * inputs * outputs))
    return _fastest(ways, clock)


def bandwidth_ceiling(cache: int, clock: ClockName) -> Ceiling:
    """Find the fastest of some reductions over a buffer of several times the last-level cache.

    Args:
        cache: bytes of the last-level cache.
        clock: what tells the fastest.
    """
    buffer = torch.zeros(64, CACHES * cache // 256 + 1)
    ways: Mapping[str, Callable[[Tensor], object]] = {
        "sum": torch.sum,
        "sum of 64 rows": partial(torch.sum, dim=1),
        "norm": torch.linalg.vector_norm,
        "maximum": torch.max,
    }
    size = f"{buffer.nbytes / 1e6:.0f} MB of float32"
    return _fastest(
        [
            Ceiling(f"{name} over {size}", partial(way, buffer), buffer.nbytes)
            for name, way in ways.items()
        ],
        clock,
    )


def _fastest(ways: list[Ceiling], clock: ClockName) -> Ceiling:
    def timed(way: Ceiling, stopwatch: Stopwatch) -> None:
        way.run()
        stopwatch.lap("run")

    samples = interleaved({way.name: partial(timed, way) for way in ways}, PROBE_ROUNDS)

    def rate(way: Ceiling) -> float:
        return way.amount / float(
            np.median([getattr(moment, clock) for moment in samples[way.name]["run"]])
        )

    return max(ways, key=rate)
