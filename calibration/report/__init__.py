"""The report of a calibration: JSON, Markdown and one HTML page."""

from modes_fx.calibration.report.build import Compared, build_report
from modes_fx.calibration.report.render import write_report
from modes_fx.calibration.report.schema import CalibrationReport

__all__ = ["CalibrationReport", "Compared", "build_report", "write_report"]
