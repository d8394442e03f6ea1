"""Bake a policy into deployable artifacts.

``export`` writes an artifact and compares it with its model, ``verify`` compares it again on other
inputs. A format is a module with a class in the table of ``formats.py``.
"""

from modes_fx.export.check import Check, verify
from modes_fx.export.errors import ExportError
from modes_fx.export.manifest import Manifest
from modes_fx.export.theta import thresholds
from modes_fx.export.write import export

__all__ = ["Check", "ExportError", "Manifest", "export", "thresholds", "verify"]
