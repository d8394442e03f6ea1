"""Skip the experts a multimodal token does not need, inside torch.compile."""

from modes_fx.attach import attach, detach, pair_counts, set_target
from modes_fx.backend import modes_backend
from modes_fx.calibration import calibrate
from modes_fx.errors import MatchError, PolicyError
from modes_fx.explain import ExplainReport, explain
from modes_fx.policy import SkipPolicy
from modes_fx.quantise import quantise_experts
from modes_fx.vocabulary import Modality

__all__ = [
    "ExplainReport",
    "MatchError",
    "Modality",
    "PolicyError",
    "SkipPolicy",
    "attach",
    "calibrate",
    "detach",
    "explain",
    "modes_backend",
    "pair_counts",
    "quantise_experts",
    "set_target",
]
