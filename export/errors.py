"""What goes wrong when an artifact is written or read."""


class ExportError(ValueError):
    """A model cannot be exported as asked, or an artifact is not what its manifest says."""
