"""How to calibrate, by name."""

from dataclasses import dataclass
from typing import Literal

from modes_fx.calibration.alpha import AlphaMode, Distance
from modes_fx.calibration.removals import Returned

Method = Literal["default", "modes"]
Search = Literal["places", "bounded", "sweep", "brute_force"]


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
        mean_strength: of the mean outputs of skipped experts; None: chosen.
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
    mean_strength: float | None = None
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
    def extras(self) -> tuple[tuple[float, float], ...]:
        """The (kept_mass_exponent, mean_strength) to choose from, likewise."""
        none = self.method == "modes"
        betas = (0.0, 0.25) if self.kept_mass_exponent is None else (self.kept_mass_exponent,)
        strengths = (0.0, 0.5, 1.0) if self.mean_strength is None else (self.mean_strength,)
        if none and self.kept_mass_exponent is None:
            betas = (0.0,)
        if none and self.mean_strength is None:
            strengths = (0.0,)
        return tuple((float(beta), float(s)) for s in strengths for beta in betas)
