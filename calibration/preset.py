"""A policy without calibration data, for a first run: from the routing of random tokens."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from modes_fx.calibration.curves import quantile_curve
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.pairs import recorded_shares
from modes_fx.fingerprint import config_hash
from modes_fx.modality import TokenIds
from modes_fx.policy import SkipPolicy
from modes_fx.policy_fields import Provenance
from modes_fx.vocabulary import CALIBRATED

TARGETS = (0.25, 0.5)
ROWS, LENGTH = 4, 128


def preset_policy(
    model: PreTrainedModel, targets: Sequence[float] = TARGETS, *, seed: int = 0
) -> SkipPolicy:
    """Make a policy from a model alone: one threshold for all layers and modalities.

    Random tokens tell how shares are spread, not which of them matter: real inputs skip more or
    less than the targets say, and nothing is known about the answers. Every token keeps its first
    expert. Calibrate (``modes_fx.calibrate``) for anything but a first look.

    Args:
        model: a transformers model, not attached.
        targets: skip ratios on random tokens.
        seed: of the tokens.

    Raises:
        ValueError: the model has no MoE layer, or one whose pairs cannot be seen.
    """
    draft = keep_all_policy(model)
    if not draft.alpha:
        raise ValueError(f"{type(model).__name__} has no MoE layer to skip experts in")
    ids = TokenIds.from_config(model.config)
    vocabulary = model.config.get_text_config().vocab_size
    usable = torch.tensor(sorted(set(range(vocabulary)) - {*ids.vision, *ids.audio}))
    generator = torch.Generator().manual_seed(seed)
    tokens = usable[torch.randint(len(usable), (ROWS, LENGTH), generator=generator)]
    with torch.no_grad(), recorded_shares(model, draft) as shares:
        model(input_ids=tokens.to(model.device))
    pooled = [share for of_layer in shares.values() for share in of_layer.values()]
    curve = quantile_curve(torch.cat(pooled).double())
    return SkipPolicy(
        alpha={path: dict.fromkeys(CALIBRATED, 1.0) for path in draft.alpha},
        tau={target: dict.fromkeys(CALIBRATED, curve(target)) for target in targets},
        kept_mass_exponent=0.25,
        min_k=1,
        model_type=model.config.model_type,
        config_hash=config_hash(model.config),
        provenance=Provenance(data="random tokens, no calibration", seed=seed),
    )
