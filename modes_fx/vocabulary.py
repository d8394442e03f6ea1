"""Words that every layer shares: the modality of a token, as a code and as a name."""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Literal

ModalityName = Literal["text", "vision", "audio"]
"""The modalities that a policy has constants for, as they are spelled in its file."""


class Modality(IntEnum):
    """The modality code of one token, as written into the modality tensor (one per token).

    ``OTHER`` tokens are never skipped. ``PADDING`` tokens compute nothing and count in no ratio.
    """

    TEXT = 0
    VISION = 1
    AUDIO = 2
    OTHER = 3
    PADDING = 4

    @property
    def label(self) -> str:
        """The name in lower case, as files and reports spell it."""
        return self.name.lower()


Share = Literal["renormalised", "weight", "router"]
"""What is compared with a threshold; see ``modes_fx.policy.SkipPolicy.share_for``."""


def default_share(top_k: int) -> Share:
    """Return the share that is compared where a policy names none, with ``top_k`` experts a token.

    With one expert a token the renormalised share is always 1.
    """
    return "renormalised" if top_k > 1 else "weight"


CALIBRATED: Mapping[ModalityName, Modality] = MappingProxyType(
    {"text": Modality.TEXT, "vision": Modality.VISION, "audio": Modality.AUDIO}
)
"""The modalities that a policy has constants for, with their codes."""
