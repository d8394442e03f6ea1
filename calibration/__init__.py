"""Find the constants of a policy (alpha, tau) from data, and what to compare them with."""

from modes_fx.calibration.baselines import (
    RandomSkipping,
    ReducedTopK,
    Selection,
    measure_selection,
    single_threshold,
    two_thresholds,
)
from modes_fx.calibration.calibrator import (
    Calibration,
    CalibrationOptions,
    calibrate,
    run_calibration,
)
from modes_fx.calibration.data import Batch
from modes_fx.calibration.encode import ChatBatches, encode_chats
from modes_fx.calibration.evaluator import Evaluator, Outcome
from modes_fx.calibration.journal import Journal, JournalError
from modes_fx.calibration.measurement import Difference, Measurement
from modes_fx.calibration.pairs import recorded_shares
from modes_fx.calibration.reference import Reference
from modes_fx.calibration.request import Request
from modes_fx.calibration.search import Found, Frontier, UnreachableTargetError, thetas_of

__all__ = [
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
    "Request",
    "Selection",
    "UnreachableTargetError",
    "calibrate",
    "encode_chats",
    "measure_selection",
    "recorded_shares",
    "run_calibration",
    "single_threshold",
    "thetas_of",
    "two_thresholds",
]
