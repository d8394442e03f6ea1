"""The journal of a calibration: what was measured, kept so that a killed run goes on where it was.

A folder with ``journal.jsonl``, whose first line says what the measurements belong to (their
fingerprint) and whose every further line is one measurement, and files of tensors beside it. Lines
are only ever added, each on the disk before the next is begun; a last line that a crash tore is
dropped. Files are written whole under another name first.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = "lock"
VERSION = 1

Fingerprint = Mapping[str, Any]
"""What measurements belong to, by field: JSON-ready values."""


class JournalError(ValueError):
    """A journal belongs to another calibration or cannot be read or written; says why."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder while the ``with`` block lasts; may be nested.

    The operating system gives the lock back when a run is killed, so none is ever left behind.

    Raises:
        JournalError: another run holds the folder, or it cannot be written.
    """
    path = folder / LOCK_FILE
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise JournalError(
            f"another run is calibrating into {folder} (it holds {path}): wait until it is done, "
            "stop it and run the same again to go on from there, or use another folder"
        ) from None
    except OSError as error:
        raise JournalError(f"the lock {path} cannot be taken: {error}") from error
    try:
        yield
    finally:
        lock.release()


class Journal:
    """Measurements by key, in a folder.

    Attributes:
        folder: where they are kept.
        created: when the calibration began, in ISO 8601; a resumed one keeps it.
        resumed: how many measurements an earlier run left.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        """Open the folder's journal, or begin one.

        Args:
            folder: made if there is none.
            fingerprint: what the measurements to come belong to.

        Raises:
            JournalError: the folder holds a journal of something else (names the fields that
                differ), or one that cannot be read or written.
        """
        self.folder = folder
        self._path = folder / JOURNAL_FILE
        self._records: dict[str, dict[str, Any]] = {}
        wanted = json.loads(json.dumps(fingerprint))
        lines = self._read()
        if lines:
            header, *records = lines
            self._check(header, wanted)
            self.created = str(header["created"])
            self._records = {record["key"]: record for record in records}
        else:
            self.created = datetime.now(UTC).isoformat(timespec="seconds")
            self._append({"version": VERSION, "created": self.created, "fingerprint": wanted})
        self.resumed = len(self._records)

    def __contains__(self, key: str) -> bool:
        """Return whether something was put under a key."""
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return what was put under a key."""
        return self._records[key]

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """All that was put, by key, in that order."""
        return dict(self._records)

    def put(self, key: str, **fields: Any) -> None:
        """Add a record; it is on the disk when this returns.

        Args:
            key: what names it; a key is put once.
            fields: JSON-ready values.

        Raises:
            JournalError: it cannot be written. What was put before is kept.
        """
        record = {"key": key, **fields}
        self._append(record)
        self._records[key] = record

    def tensors(self, name: str) -> dict[str, Tensor] | None:
        """Return the tensors saved under a name, or None where there are none."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else None

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Save tensors under a name, all of them or nothing.

        Raises:
            JournalError: they cannot be written.
        """
        write_tensors(self.folder / f"{name}.safetensors", tensors)

    def _read(self) -> list[dict[str, Any]]:
        """Return the journal's whole lines, and cut off one that a crash tore."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = self._path.read_bytes() if self._path.exists() else b""
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._path, whole)
        except OSError as error:
            raise JournalError(f"the journal {self._path} cannot be opened: {error}") from error
        lines = content[:whole].splitlines()
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise JournalError(
                f"{self._path} is damaged ({error}): remove it to calibrate anew, or use another "
                "folder"
            ) from None

    def _check(self, header: Mapping[str, Any], wanted: Fingerprint) -> None:
        if header.get("version") != VERSION:
            raise JournalError(
                f"{self._path} has version {header.get('version')}, this modes-fx reads {VERSION}: "
                "use another folder"
            )
        found = header["fingerprint"]
        differing = [
            f"{name} was {_shown(found.get(name))}, is {_shown(wanted.get(name))}"
            for name in dict.fromkeys([*wanted, *found])
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            raise JournalError(
                f"{self.folder} holds the journal of another calibration: {'; '.join(differing)}. "
                "Use another folder, go back to what it was, or remove that one to begin anew"
            )

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            with self._path.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    _write_all(file.fileno(), line)
                except OSError:
                    os.ftruncate(file.fileno(), end)
                    raise
        except OSError as error:
            raise JournalError(
                f"{self._path} cannot be written: {error.strerror}. All measurements before this "
                "one are kept: make room and run the same again to go on from here"
            ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a safetensors file, all of them or nothing.

    Raises:
        JournalError: they cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error}. What was measured before is kept: make room and "
            "run the same again to go on from here"
        ) from error


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
