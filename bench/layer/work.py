"""How much a call has to compute and to read at least."""

from dataclasses import dataclass

import torch

from modes_fx.bench.shapes import LayerShape


@dataclass(frozen=True)
class Work:
    """The least that any implementation does for a call.

    Attributes:
        flops: of the GEMMs; a multiplication and an addition each count as one.
        bytes: read from or written to memory: the weights of the experts that are hit once, the
            tokens once, the result once.
    """

    flops: float
    bytes: float

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Return the seconds that a machine takes which computes while it reads.

        Args:
            flops_per_second: its GEMM ceiling.
            bytes_per_second: its bandwidth ceiling.
        """
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def work_of(
    shape: LayerShape,
    tokens: int,
    kept: float,
    hit: float,
    dtype: torch.dtype,
    weight_bytes: int | None = None,
) -> Work:
    """Count the work of a call.

    Args:
        shape: the layer.
        tokens: T.
        kept: how many pairs are computed.
        hit: how many experts they are of.
        dtype: of weights and tokens.
        weight_bytes: of a weight, where that is not the dtype's.
    """
    weights = hit * shape.expert_parameters * (weight_bytes or dtype.itemsize)
    activations = 2 * tokens * shape.hidden * dtype.itemsize
    return Work(flops=2 * kept * shape.expert_parameters, bytes=weights + activations)
