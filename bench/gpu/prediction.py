"""What a layer costs at least: bytes, floating-point operations, and the time they take at best.

Computed from the shape and a random routing; nothing here was measured.
"""

from pydantic import BaseModel

from modes_fx.bench.gpu.accounting import Routing, Work, count_modes, flops
from modes_fx.bench.gpu.routing import random_routing
from modes_fx.bench.gpu.shapes import Layer

SKIPS = (0.0, 0.5, 0.8, 0.88)
PREFILL_TOKENS = (4096, 8192, 16384, 32768)
DECODE_TOKENS = (1, 16, 64)


class Peak(BaseModel):
    """What a device can do at most, by its data sheet.

    Attributes:
        name: of the device.
        bandwidth: bytes a second.
        rate: bfloat16 floating-point operations a second, dense.
    """

    name: str
    bandwidth: float
    rate: float


H100 = Peak(name="H100 SXM", bandwidth=3.35e12, rate=989e12)


class Prediction(BaseModel):
    """The least that one layer costs for one call.

    Attributes:
        tokens: T.
        skip: the share of pairs that are skipped.
        kept: pairs that are computed.
        experts_hit: experts with a pair.
        padding: rows of all tiles over kept rows.
        megabytes: that must be moved.
        gigaflops: that must be computed.
        floor_us: microseconds that the larger of both takes at the peak.
        bound: which of them it is, ``memory`` or ``compute``.
    """

    tokens: int
    skip: float
    kept: int
    experts_hit: int
    padding: float
    megabytes: float
    gigaflops: float
    floor_us: float
    bound: str


def predict(layer: Layer, tokens: int, skip: float, block_m: int, peak: Peak) -> Prediction:
    """Predict one call, its experts chosen alike."""
    index = random_routing(tokens, layer.top_k, layer.experts, skip)
    routing = Routing.of(index, layer.experts)
    work: Work = count_modes(layer, routing, block_m, 2)
    moving, computing = work.total_bytes / peak.bandwidth, flops(layer, routing) / peak.rate
    return Prediction(
        tokens=tokens,
        skip=skip,
        kept=routing.kept,
        experts_hit=routing.hit,
        padding=1 + work.padded_rows / max(routing.kept, 1),
        megabytes=work.total_bytes / 1e6,
        gigaflops=flops(layer, routing) / 1e9,
        floor_us=1e6 * max(moving, computing),
        bound="memory" if moving > computing else "compute",
    )
