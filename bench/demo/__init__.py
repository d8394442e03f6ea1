"""The demo: a trained multimodal model calibrated, checked, evaluated, timed and reported."""

from modes_fx.bench.demo.report import DemoReport
from modes_fx.bench.demo.run import run_demo
from modes_fx.bench.demo.summary import print_summary

__all__ = ["DemoReport", "print_summary", "run_demo"]
