"""The card of a policy: the README.md that a hub shows, written from what the policy says."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from modes_fx.policy_fields import Reached
from modes_fx.policy_file import CARD_MARKER, is_hub_id
from modes_fx.policy_means import strength_in_words
from modes_fx.vocabulary import CALIBRATED, ModalityName

if TYPE_CHECKING:
    from modes_fx.policy import SkipPolicy

TAGS = ["modes-fx", "mixture-of-experts", "expert-skipping", "multimodal"]
_TEMPLATE = Path(__file__).with_suffix(".md.jinja")


def policy_card(policy: "SkipPolicy", source: str) -> str:
    """Describe a policy in Markdown, with the metadata that hubs read on top.

    Args:
        policy: what to describe.
        source: what its reader gives to ``SkipPolicy.from_pretrained``.
    """
    named = {name for alpha in policy.alpha.values() for name in alpha}
    modalities = [name for name in CALIBRATED if name in named]
    base = policy.model_id if policy.model_id and is_hub_id(policy.model_id) else None
    card = ModelCard.from_template(
        ModelCardData(base_model=base, library_name="modes-fx", tags=TAGS),
        template_path=str(_TEMPLATE),
        marker=CARD_MARKER,
        source=source,
        model=policy.model_id or policy.model_type or "one model",
        modalities=modalities,
        targets=[_target(policy, name, modalities) for name in _targets(policy)],
        layers=[_layer(policy, path, modalities) for path in policy.alpha],
        calibration=_calibration(policy),
    )
    return str(card.content).rstrip() + "\n"


def _targets(policy: "SkipPolicy") -> list[str]:
    return sorted(policy.tau, key=float)


def _target(policy: "SkipPolicy", name: str, modalities: list[ModalityName]) -> dict[str, Any]:
    tau = policy.tau[name]
    reached = policy.provenance.reached.get(name, Reached())
    ratios = reached.skip_ratio_by_modality
    return {
        "name": name,
        "tau": [_number(tau.get(modality)) for modality in modalities],
        "skipped": _percent(reached.skip_ratio),
        "skipped_of": [_percent(ratios.get(modality)) for modality in modalities],
        "kl": _number(reached.kl),
    }


def _layer(policy: "SkipPolicy", path: str, modalities: list[ModalityName]) -> dict[str, Any]:
    alpha = policy.alpha[path]
    thetas = [policy.theta(path, target).tolist() for target in _targets(policy)]
    codes = [modality for name, modality in CALIBRATED.items() if name in modalities]
    return {
        "path": path,
        "alpha": " / ".join(_number(alpha.get(modality)) for modality in modalities),
        "thresholds": [" / ".join(_number(theta[code]) for code in codes) for theta in thetas],
    }


def _calibration(policy: "SkipPolicy") -> list[tuple[str, str]]:
    provenance = policy.provenance
    tokens = ", ".join(f"{count} {name}" for name, count in provenance.tokens.items())
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    rows = {
        "data": provenance.data,
        "samples": provenance.samples,
        "tokens": tokens,
        "seed": provenance.seed,
        "date": provenance.created,
        "versions": versions,
        "special tokens": "never skipped" if policy.special_tokens == "keep" else "count as text",
        "experts kept at least": policy.min_k,
        "exponent on alpha": policy.alpha_exponent,
        "exponent on the kept share": policy.kept_mass_exponent,
        "mean outputs of skipped experts": strength_in_words(policy.mean_strength),
        "model's config hash": policy.config_hash and policy.config_hash[:12],
    }
    return [(name, _cell(value)) for name, value in rows.items() if value not in (None, "")]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "skips all" if value > 0 else "keeps all"
    return f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
