"""How to calibrate, by name."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from modes_fx.calibration.alpha import AlphaMode, Distance
from modes_fx.calibration.removals import Returned
from modes_fx.policy_fields import Strength
from modes_fx.vocabulary import ModalityName

Method = Literal["default", "modes"]
Search = Literal["places", "bounded", "sweep", "brute_force"]


class Candidate(NamedTuple):
    """What can be chosen besides thresholds.

    Attributes:
        kept_mass_exponent: of the partial renormalisation.
        text: how much of the mean outputs of skipped experts tokens of text get.
        others: how much of them those of every other modality get.
    """

    kept_mass_exponent: float = 0.0
    text: float = 0.0
    others: float = 0.0

    @property
    def adds_means(self) -> bool:
        """Whether means are needed."""
        return self.text > 0 or self.others > 0

    def of(self, modalities: Collection[ModalityName]) -> "Candidate":
        """Return what it amounts to for some modalities: with one kind, one strength."""
        text, others = "text" in modalities, any(name != "text" for name in modalities)
        strength = self.text if text else self.others
        return self if text and others else Candidate(self.kept_mass_exponent, strength, strength)

    def strength(self, modalities: Iterable[ModalityName]) -> Strength:
        """Return the strength as a policy has it."""
        if self.text == self.others:
            return self.text
        return {name: self.text if name == "text" else self.others for name in modalities}


KEPT_MASS_EXPONENTS = (0.25, 0.0)
STRENGTHS = ((0.5, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0))
"""For text and for the rest. The first ones did best on small models (three trained ones): means of
text at full strength overshoot at moderate skip ratios, those of images do not."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        method: ``"default"`` chooses the exponent on alpha and the extras (partial renormalisation,
            mean outputs of skipped experts) by what they do to the answers, each step only where
            both halves of the samples agree; ``"modes"`` is the published method: alpha as it is,
            no extras.
        alpha_mode: ``"per_modality"`` measures alpha for each modality, ``"shared"`` one for all.
        alpha_distance: by the KL of the answers, or by the squared error of logits.
        alpha_returned: what a layer puts out while its alpha is measured; see
            ``modes_fx.calibration.removals.Returned``.
        alpha_exponent: the exponent on alpha, 1 as published, 0 for none; None: chosen.
        kept_mass_exponent: the exponent of the partial renormalisation; None: chosen.
        mean_strength: of the mean outputs of skipped experts, one number or (for text, for the
            others); None: chosen.
        refine_rounds: how often each layer's thresholds are moved by themselves; takes 2 L M passes
            each time.
        share: what is compared with thresholds; None chooses by the model's top-k.
        special_tokens: whether the tokenizer's special tokens never skip or count as text.
        curves: where the search looks for tau: along quantiles of what the model's shares are, or
            along the ``"release"``'s fixed curves.
        search: by a few places of the frontier and halvings; ``"bounded"`` on a grid, for the
            sweep's optimum; the published ``"sweep"``; or ``"brute_force"``.
        size: the steps of that grid, in each direction.
        tolerance: by how much the skip ratio may exceed a target.
        batch_size: the most samples that go through the model together.
        compiler: see ``modes_fx.backend.BackendOptions``.
        data_name: what the policy's provenance calls the data.
        seed: the seed that drew the samples, for the provenance: calibration draws nothing.
    """

    method: Method = "default"
    alpha_mode: AlphaMode = "per_modality"
    alpha_distance: Distance = "kl"
    alpha_returned: Returned = "zero"
    alpha_exponent: float | None = None
    kept_mass_exponent: float | None = None
    mean_strength: float | tuple[float, float] | None = None
    refine_rounds: int = 0
    share: Literal["renormalised", "weight"] | None = None
    special_tokens: Literal["keep", "text"] = "keep"
    curves: Literal["quantile", "release"] = "quantile"
    search: Search = "places"
    size: int = 100
    tolerance: float = 0.002
    batch_size: int = 16
    compiler: Literal["inductor", "eager"] = "eager"
    data_name: str | None = None
    seed: int | None = None

    @property
    def exponents(self) -> tuple[float, ...]:
        """The exponents on alpha to choose from, the first where nothing tells them apart."""
        if self.alpha_exponent is not None:
            return (float(self.alpha_exponent),)
        return (1.0,) if self.method == "modes" else (0.0, 0.125, 0.25, 0.5, 1.0)

    @property
    def extras(self) -> tuple[Candidate, ...]:
        """The extras to choose from: none, or those given; then the others, likeliest first."""
        beta, given, chosen = self.kept_mass_exponent, self.mean_strength, self.method != "modes"
        both = given if isinstance(given, tuple) else (given or 0.0, given or 0.0)
        exponents = KEPT_MASS_EXPONENTS if beta is None and chosen else (beta or 0.0,)
        strengths = STRENGTHS if given is None and chosen else (both,)
        tried = (Candidate(exponent, *pair) for pair, exponent in product(strengths, exponents))
        return tuple(dict.fromkeys([Candidate(beta or 0.0, *both), *tried]))
