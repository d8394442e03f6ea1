"""Tensors that may be too many for memory: kept there while they are few, else in files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from modes_fx.calibration.journal import write_tensors

IN_MEMORY = 1 << 30
"""Bytes of tensors that a store without a folder keeps in memory."""


class TensorStore:
    """Named groups of tensors, in files that are mapped into memory when they are read.

    Attributes:
        bytes_in_memory: what is held in memory.
        bytes_on_disk: what was written to files.
    """

    def __init__(self, folder: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        """Make a store.

        Args:
            folder: for the files, which stay; None keeps up to ``in_memory`` bytes in memory and
                the rest in a folder that goes with the store.
            in_memory: see above.
        """
        self.bytes_in_memory = self.bytes_on_disk = 0
        self._folder = folder
        self._limit = 0 if folder is not None else in_memory
        self._held: dict[str, dict[str, Tensor]] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __contains__(self, name: str) -> bool:
        """Return whether the store, or an earlier one with the same folder, holds a group."""
        return name in self._held or (self._folder is not None and self._file(name).exists())

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        """Return a group; from a file its tensors are read as they are used."""
        return self._held[name] if name in self._held else load_file(self._file(name))

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a group of CPU tensors.

        Raises:
            JournalError: a file cannot be written.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.bytes_in_memory + size <= self._limit:
            self._held[name] = dict(tensors)
            self.bytes_in_memory += size
            return
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="modes-fx-")
            self._folder = Path(self._temporary.name)
        write_tensors(self._file(name), tensors)
        self.bytes_on_disk += size

    def _file(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"
