"""What a measurement is asked for, as plain data: equal requests are the same measurement."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from modes_fx.hooks import keep_all_theta
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Strength
from modes_fx.policy_means import strength_in_words, strengths
from modes_fx.vocabulary import ModalityName

Part = Literal["all", "fit", "held_back"]
"""Which samples: all, those to choose by, or those kept back to check what was chosen."""

HALVES: tuple[Part, Part] = ("fit", "held_back")

Row = tuple[float, ...]


@dataclass(frozen=True)
class Request:
    """One choice of everything that decides what is skipped; hashable and canonical.

    Make it with :meth:`of`, which brings equal choices into one form.

    Attributes:
        thetas: by layer path, ascending: M thresholds by modality code, float32 values. Layers that
            are not named keep every pair.
        kept_mass_exponent: kept weights are multiplied by (kept share mass)**-exponent.
        min_k: how many experts, at least, every token keeps.
        mean_strength: how much of the mean of skipped slots is added in their place, by modality.
        means: the hash of those means (``Evaluator.add_means``); None without.
        part: the samples.
    """

    thetas: tuple[tuple[str, Row], ...] = ()
    kept_mass_exponent: float = 0.0
    min_k: int = 0
    mean_strength: tuple[tuple[ModalityName, float], ...] = ()
    means: str | None = None
    part: Part = "all"

    @staticmethod
    def of(
        thetas: Mapping[str, Tensor],
        *,
        kept_mass_exponent: float = 0.0,
        min_k: int = 0,
        mean_strength: Strength = 0.0,
        means: str | None = None,
        part: Part = "all",
    ) -> "Request":
        """Make the request for thresholds ``{layer path: [M] by modality code}``.

        Raises:
            ValueError: a layer has another number of thresholds than there are codes, one of them
                is NaN, or a strength is given without means.
        """
        keep_all = _row(keep_all_theta())
        rows = {path: _row(theta) for path, theta in thetas.items()}
        for path, row in rows.items():
            if len(row) != len(keep_all) or any(value != value for value in row):
                raise ValueError(
                    f"the thresholds of {path} are {row}: give {len(keep_all)} numbers"
                )
        by_modality = strengths(mean_strength)
        adds_means = any(by_modality.values())
        if adds_means and means is None:
            raise ValueError(
                f"a mean strength of {strength_in_words(mean_strength)} needs means to add"
            )
        return Request(
            thetas=tuple(sorted((path, row) for path, row in rows.items() if row != keep_all)),
            kept_mass_exponent=float(kept_mass_exponent),
            min_k=int(min_k),
            mean_strength=tuple(by_modality.items()) if adds_means else (),
            means=means if adds_means else None,
            part=part,
        )

    @staticmethod
    def of_policy(policy: SkipPolicy, target: float | str | None) -> "Request":
        """Make the request for what a policy does at one of its targets, but for its means."""
        return Request.of(
            {path: policy.theta(path, target) for path in policy.alpha},
            kept_mass_exponent=policy.kept_mass_exponent,
            min_k=policy.min_k,
        )

    def on(self, part: Part) -> "Request":
        """Return the same request for other samples."""
        return replace(self, part=part)

    def theta(self, path: str) -> Tensor:
        """Return the thresholds float32 ``[M]`` of a layer, by modality code."""
        rows = dict(self.thetas)
        return torch.tensor(rows[path]) if path in rows else keep_all_theta()

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON-ready data, infinities as they are."""
        return asdict(self)


def _row(theta: Tensor) -> Row:
    return tuple(theta.detach().to("cpu", torch.float32).tolist())
