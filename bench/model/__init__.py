"""Time a whole model: prefill and decode, as transformers runs it best and as ours does."""

from modes_fx.bench.model.report import ModelBench, WayRow
from modes_fx.bench.model.run import ModelPlan, bench_model

__all__ = ["ModelBench", "ModelPlan", "WayRow", "bench_model"]
