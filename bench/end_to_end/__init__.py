"""Time ``generate`` with images on any model: its own best ways, and ours at several targets."""

from modes_fx.bench.end_to_end.report import EndToEnd
from modes_fx.bench.end_to_end.run import EndToEndPlan, bench_end_to_end

__all__ = ["EndToEnd", "EndToEndPlan", "bench_end_to_end"]
