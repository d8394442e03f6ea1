"""Means: what skipped experts put out on average, kept beside a policy as safetensors."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from modes_fx.errors import PolicyError, listed
from modes_fx.policy_fields import Strength, target_key
from modes_fx.vocabulary import CALIBRATED, ModalityName

SEPARATOR = "/"


class Means:
    """The mean output mu of the pairs that each target's thresholds skip.

    Attributes:
        sha256: of the file that they are stored in.
    """

    def __init__(self, tables: Mapping[float | str, Mapping[str, Tensor]]) -> None:
        """Check and keep the tables.

        Args:
            tables: ``{target: {layer path: [C, E, H]}}`` by modality code and expert; tokens of
                codes >= C get nothing.

        Raises:
            PolicyError: a table is not of that shape, or holds something else than finite numbers.
        """
        self._tables: dict[str, dict[str, Tensor]] = {}
        for target, layers in tables.items():
            for layer, table in layers.items():
                if table.dim() != 3 or not table.is_floating_point():
                    raise PolicyError(
                        f"the means of {layer} at target {target} are {table.dtype} of shape "
                        f"{tuple(table.shape)}, not floating-point numbers [C, E, H]"
                    )
                if not bool(table.isfinite().all()):
                    raise PolicyError(f"the means of {layer} at target {target} are not finite")
                of_target = self._tables.setdefault(target_key(target), {})
                of_target[layer] = table.detach().cpu().contiguous()

    @property
    def targets(self) -> list[str]:
        """The targets there are means for."""
        return list(self._tables)

    def at(self, target: float | str) -> Mapping[str, Tensor]:
        """Return a target's tables by layer; empty where it has none."""
        return self._tables.get(target_key(target), {})

    @cached_property
    def file(self) -> bytes:
        """The content of the file that they are stored in."""
        flat = {
            f"{target}{SEPARATOR}{layer}": table
            for target, layers in self._tables.items()
            for layer, table in layers.items()
        }
        return save(flat)

    @cached_property
    def sha256(self) -> str:
        """The digest of :attr:`file`, 64 hexadecimal digits."""
        return hashlib.sha256(self.file).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether two hold the same numbers under the same names."""
        return isinstance(other, Means) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        """Agrees with equality."""
        return hash(self.sha256)

    @staticmethod
    def read(path: Path, sha256: str) -> "Means":
        """Read a file that a policy names.

        Raises:
            PolicyError: it is missing, was changed, or is not such a file.
        """
        if not path.is_file():
            raise PolicyError(
                f"the policy needs its mean outputs {path.name}, which are not beside it: copy "
                "both files"
            )
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise PolicyError(
                f"{path.name} has the sha256 {found:.12}, the policy names {sha256:.12}: they are "
                "not of one calibration, copy both files together"
            )
        try:
            flat = load(content)
        except SafetensorError as error:
            raise PolicyError(f"{path.name} is not a safetensors file: {error}") from None
        tables: dict[float | str, dict[str, Tensor]] = {}
        for name, table in flat.items():
            target, _, layer = name.partition(SEPARATOR)
            tables.setdefault(target, {})[layer] = table
        return Means(tables)

    def check(self, layers: Mapping[str, object], targets: Mapping[str, object]) -> None:
        """Check that they are of the layers and targets of a policy.

        Raises:
            PolicyError: there are others, which are named.
        """
        if unknown := self._tables.keys() - targets.keys():
            raise PolicyError(f"there are means for targets without tau: {listed(unknown)}")
        named = {layer for tables in self._tables.values() for layer in tables}
        if strange := named - layers.keys():
            raise PolicyError(f"there are means for layers without alpha: {listed(strange)}")


def strengths(strength: Strength) -> dict[ModalityName, float]:
    """Return the strength of each modality; one number is for all, what is not named gets 0."""
    if isinstance(strength, Mapping):
        return {name: float(strength.get(name, 0.0)) for name in CALIBRATED}
    return dict.fromkeys(CALIBRATED, float(strength))


def strength_in_words(strength: Strength) -> str:
    """Return a strength for readers, as in ``text 0.5, vision 1``."""
    if isinstance(strength, Mapping):
        return ", ".join(f"{name} {value:g}" for name, value in strength.items())
    return f"{strength:g}"


def scaled(table: Tensor, strength: Strength) -> Tensor:
    """Return ``strength * mu`` of a table ``[C, E, H]`` by modality code, rounded to its dtype."""
    by_code = torch.zeros(len(table), 1, 1, device=table.device)
    for name, value in strengths(strength).items():
        by_code[CALIBRATED[name] : CALIBRATED[name] + 1] = value
    return (by_code * table.to(torch.float32)).to(table.dtype)
