"""alpha: how much the answers change when one layer's experts are removed for one modality."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modes_fx.calibration.measurement import Difference
from modes_fx.calibration.removals import Group, Returned, measure_removals
from modes_fx.calibration.survey import Survey
from modes_fx.vocabulary import ModalityName

AlphaMode = Literal["per_modality", "shared"]
Distance = Literal["kl", "mse"]
Alpha = dict[str, dict[ModalityName, float]]

NOTHING = 1e-9
"""An alpha below this, in nats or squared logits, is rounding: nothing reads what the experts put
out there. It becomes 0, which skips them at any threshold."""


@dataclass(frozen=True)
class AlphaOptions:
    """How alpha is measured.

    Attributes:
        mode: ``"per_modality"`` removes a layer for one modality at a time; ``"shared"`` for all of
            them together, which gives them the same alpha, as published.
        distance: of the answers from the full model's: their KL, or the squared error of logits.
        returned: what a removed layer puts out; ``"input"`` is the variant of the released code.
    """

    mode: AlphaMode = "per_modality"
    distance: Distance = "kl"
    returned: Returned = "zero"

    def groups(self, modalities: Sequence[ModalityName]) -> list[Group]:
        """Return which modalities a layer is removed for together."""
        shared = self.mode == "shared"
        return [tuple(modalities)] if shared else [(name,) for name in modalities]


def measure_alpha(
    survey: Survey,
    modalities: Sequence[ModalityName],
    options: AlphaOptions | None = None,
    *,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Alpha:
    """Measure alpha of every layer: how far the answers move when its routed experts are removed.

    Removed means that they add nothing to the tokens concerned.

    Args:
        survey: of the samples.
        modalities: those with calibration tokens.
        options: by default :class:`AlphaOptions`.
        on_progress: called with the share that is done.

    Returns:
        ``{layer path: {modality: alpha >= 0}}``, mean over answer tokens.
    """
    options = options or AlphaOptions()
    groups = options.groups(modalities)
    removals = measure_removals(survey, groups, returned=options.returned, on_progress=on_progress)
    return {
        path: {
            name: _floored(_distance(difference, options.distance))
            for group, difference in by_group.items()
            for name in group
        }
        for path, by_group in removals.items()
    }


def normalise_alpha(alpha: Mapping[str, Mapping[ModalityName, float]]) -> Alpha:
    """Scale the alphas of each modality to sum to 1 over the layers; all zeros stay zeros."""
    names = {name for constants in alpha.values() for name in constants}
    total = {name: sum(constants[name] for constants in alpha.values()) for name in names}
    return {
        path: {name: value / (total[name] or 1.0) for name, value in constants.items()}
        for path, constants in alpha.items()
    }


def _distance(difference: Difference, distance: Distance) -> float:
    return difference.kl if distance == "kl" else difference.mse


def _floored(alpha: float) -> float:
    return alpha if alpha >= NOTHING else 0.0
