"""The field types of a policy: constants by layer, modality and target, and their provenance."""

import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from modes_fx.errors import PolicyError
from modes_fx.vocabulary import ModalityName


def target_key(target: float | str) -> str:
    """Spells a skip target the one way that a policy stores it: 0.50 and "0.5" give "0.5".

    Raises:
        PolicyError: ``target`` is not a number between 0 and 1.
    """
    try:
        value = math.nan if isinstance(target, bool) else float(target)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise PolicyError(f"a target is a skip ratio between 0 and 1, not {target!r}")
    return str(abs(round(value, 10)))


def _spell_targets(table: Any) -> Any:
    if not isinstance(table, dict):
        return table
    normalised = {target_key(target): entry for target, entry in table.items()}
    if len(normalised) < len(table):
        raise PolicyError(f"targets given twice: {', '.join(map(repr, table))}")
    return normalised


FROZEN = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
Constant = Annotated[float, Field(ge=0)]
PerModality = dict[ModalityName, Constant]
PerLayer = dict[str, PerModality]
Strength = Constant | PerModality
Entry = TypeVar("Entry")
ByTarget = Annotated[dict[str, Entry], BeforeValidator(_spell_targets)]


class Reached(BaseModel):
    """What a target gave on the calibration data: a KL in nats, and skip ratios from 0 to 1."""

    model_config = FROZEN

    kl: float | None = None
    skip_ratio: float | None = None
    skip_ratio_by_modality: dict[ModalityName, float] = {}


class Provenance(BaseModel):
    """Where the constants come from, so that they can be found again.

    Attributes:
        data: The calibration data in words, or its dataset id and revision.
        samples: How many samples were used.
        tokens: How many tokens of each modality they held.
        seed: The seed that chose and ordered them.
        versions: Library name to version.
        created: When, in ISO 8601.
        reached: What each target gave.
    """

    model_config = FROZEN

    data: str | None = None
    samples: int | None = Field(default=None, ge=0)
    tokens: dict[ModalityName, int] = {}
    seed: int | None = None
    versions: dict[str, str] = {}
    created: str | None = None
    reached: ByTarget[Reached] = {}
