"""manifest.json: what an artifact holds, for which model and policy, and how it was verified."""

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from modes_fx.export.errors import ExportError

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
PACKAGES = ("modes-fx", "torch", "transformers")


class Value(BaseModel):
    """An input or output.

    Attributes:
        name: of it.
        dtype: of it.
        shape: its sizes, as numbers or symbols.
        fixed: its value, where that is inside the artifact, which takes no other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dtype: str
    shape: list[int | str]
    fixed: list[Any] | None = None


class Component(BaseModel):
    """One callable of the artifact.

    Attributes:
        inputs: by name.
        outputs: the logits and, where there is one, the cache.
        layers: its MoE layers.
        rewritten: how many of them are gated.
        max_error: the largest difference from the model, as a share of an output's largest value,
            when it was exported.
        checked_in: what ran it then.
        time_ratio: time at the target over time with every expert kept, where it was measured.
        theta_layers: where thresholds are an input, the layer of each row of ``theta``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[Value]
    outputs: list[Value]
    layers: int
    rewritten: int
    max_error: float
    checked_in: str
    time_ratio: float | None = None
    theta_layers: list[str] = []

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Check that inputs have the values that are inside.

        Raises:
            ExportError: one has another.
        """
        for value in self.inputs:
            if value.fixed is not None and inputs[value.name].tolist() != value.fixed:
                raise ExportError(
                    f"{value.name} is {inputs[value.name].tolist()}, and the artifact takes images "
                    f"of the sizes {value.fixed} alone: resize them, or export it again with such "
                    "images"
                )

    @property
    def saves_compute(self) -> bool | None:
        """Whether skipping saves time; None where it was not measured."""
        return None if self.time_ratio is None else self.time_ratio < 1


class Manifest(BaseModel):
    """The manifest of one artifact.

    Attributes:
        format: of the components, a name of ``modes_fx.export.formats.FORMATS``.
        model: its name or folder, for ``verify``.
        model_config_hash: ``modes_fx.fingerprint.config_hash`` of it.
        dtype: of its weights.
        device: it was exported for: cpu or cuda.
        target: the skip ratio whose thresholds are inside.
        policy_sha256: of ``policy/modes_policy.json``.
        details: of the format, such as the instruction set or the opset, by name.
        machine: of the processor, such as x86_64.
        versions: of the packages that wrote it.
        tolerance: of ``max_error``.
        components: by name.
        files: the sha256 digest of every other file, by path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    version: int = MANIFEST_VERSION
    format: str
    model: str
    model_config_hash: str
    dtype: str
    device: str = "cpu"
    target: float
    policy_sha256: str
    details: dict[str, str]
    machine: str = platform.machine()
    versions: dict[str, str]
    tolerance: float
    components: dict[str, Component]
    files: dict[str, str]

    @property
    def fixes_images(self) -> bool:
        """Whether a component takes images of one size alone."""
        return any(
            value.fixed is not None
            for component in self.components.values()
            for value in component.inputs
        )

    def save(self, folder: Path) -> None:
        """Write it into an artifact."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artifact's manifest and check that its files are those that were written.

        Raises:
            ExportError: there is none, it is malformed, or a file is missing or was changed.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ExportError(f"{folder} is no artifact: it has no {MANIFEST}")
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ExportError(f"{path} is not a manifest of this release: {error}") from error
        manifest.check_files(folder)
        return manifest

    def check_files(self, folder: Path) -> None:
        """Check that an artifact holds the files that were written, unchanged.

        Raises:
            ExportError: a file is missing, was changed, or was added.
        """
        found = digests(folder)
        for name, digest in self.files.items():
            if name not in found:
                raise ExportError(f"{folder / name} is missing: export the model again")
            if found[name] != digest:
                raise ExportError(
                    f"{folder / name} is not what was exported: export the model again"
                )
        if added := sorted(found.keys() - self.files.keys()):
            raise ExportError(f"{folder / added[0]} is no part of the artifact: take it out")


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 digest of every file of a folder but the manifest, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages that write artifacts."""
    return {package: version(package) for package in PACKAGES}
