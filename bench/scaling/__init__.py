"""How the cost of experts grows with prompt length, batch, experts and layers."""

from modes_fx.bench.scaling.report import Scaling
from modes_fx.bench.scaling.run import ScalingPlan, bench_scaling

__all__ = ["Scaling", "ScalingPlan", "bench_scaling"]
