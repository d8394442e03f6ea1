"""Find the constants of a policy (alpha, tau) from data, and what to compare them with."""

from modes_fx.calibration.baselines import Baseline, baselines
from modes_fx.calibration.calibrator import (
    Calibration,
    calibrate,
    find_policy,
    run_calibration,
)
from modes_fx.calibration.compare import Row, compare, measure_policy, paired_ratio
from modes_fx.calibration.data import Batch
from modes_fx.calibration.encode import ChatBatches, encode_chats
from modes_fx.calibration.evaluator import Evaluator, Outcome
from modes_fx.calibration.journal import Journal, JournalError
from modes_fx.calibration.measurement import Difference, Measurement
from modes_fx.calibration.options import CalibrationOptions
from modes_fx.calibration.pairs import recorded_shares
from modes_fx.calibration.plane import UnreachableTargetError, thetas_of
from modes_fx.calibration.preset import preset_policy
from modes_fx.calibration.reference import Reference
from modes_fx.calibration.request import Request
from modes_fx.calibration.search import Found, Frontier
from modes_fx.calibration.selections import (
    RandomSkipping,
    ReducedTopK,
    RelativeRule,
    Selection,
    measure_selection,
)

__all__ = [
    "Baseline",
    "Batch",
    "Calibration",
    "CalibrationOptions",
    "ChatBatches",
    "Difference",
    "Evaluator",
    "Found",
    "Frontier",
    "Journal",
    "JournalError",
    "Measurement",
    "Outcome",
    "RandomSkipping",
    "ReducedTopK",
    "Reference",
    "RelativeRule",
    "Request",
    "Row",
    "Selection",
    "UnreachableTargetError",
    "baselines",
    "calibrate",
    "compare",
    "encode_chats",
    "find_policy",
    "measure_policy",
    "measure_selection",
    "paired_ratio",
    "preset_policy",
    "recorded_shares",
    "run_calibration",
    "thetas_of",
]
