"""Chats to calibrate on, from published data sets, tables of one's own, or a file of messages."""

from modes_fx.calibration.loaders.columns import load_columns
from modes_fx.calibration.loaders.messages import load_messages
from modes_fx.calibration.loaders.published import PUBLISHED, load_published
from modes_fx.calibration.loaders.samples import Samples

__all__ = ["PUBLISHED", "Samples", "load_columns", "load_messages", "load_published"]
