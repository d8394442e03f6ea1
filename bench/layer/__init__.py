"""Time the experts of one layer: ours, transformers' and other libraries', against the machine."""

from modes_fx.bench.layer.implementations import (
    DEFAULT_BASELINES,
    IMPLEMENTATIONS,
    Implementation,
    register,
)
from modes_fx.bench.layer.report import LayerBench, LayerRow
from modes_fx.bench.layer.run import LayerPlan, bench_layer

__all__ = [
    "DEFAULT_BASELINES",
    "IMPLEMENTATIONS",
    "Implementation",
    "LayerBench",
    "LayerPlan",
    "LayerRow",
    "bench_layer",
    "register",
]
