"""How far a layer's routed experts move the tokens of each modality, and where to.

What the experts add to the residual stream is found by taking them away: the decoder layer's output
with them, less that without them. So it does not matter what else the layer adds or scales.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from modes_fx.calibration.measurement import quantised
from modes_fx.vocabulary import CALIBRATED, ModalityName

FIELDS = ("magnitude", "angle", "tokens")


@dataclass(frozen=True)
class Update:
    """What a layer's routed experts do to a token, mean over tokens.

    Attributes:
        magnitude: the length of the update over the token's length without it.
        angle: between the token with and without it, in degrees.
        tokens: how many.
    """

    magnitude: float
    angle: float
    tokens: int


@contextmanager
def seen_output(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the hidden states that a decoder layer puts out inside the ``with`` block."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, args, output: seen.append(hidden_of(output)))
    try:
        yield seen
    finally:
        handle.remove()


def hidden_of(output: object) -> Tensor:
    """Return the hidden states in what a decoder layer puts out: the first tensor."""
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


def update_sums(before: Tensor, after: Tensor, codes: Tensor) -> Tensor:
    """Add up how far tokens moved, by modality.

    Args:
        before: ``[..., H]``, T tokens without what moved them.
        after: likewise with it.
        codes: int ``[T]``, the modality of each.

    Returns:
        float64 ``[C, 3]``: relative magnitudes, angles in degrees, tokens; rounded so that the
        order in which batches are added does not matter.
    """
    without, moved = (hidden.detach().cpu().double().flatten(0, -2) for hidden in (before, after))
    length = without.norm(dim=-1).clamp(min=1e-30)
    unit = without / length[:, None]
    along = (moved * unit).sum(-1)
    across = (moved - along[:, None] * unit).norm(dim=-1)
    found = torch.stack(
        [
            (moved - without).norm(dim=-1) / length,
            torch.rad2deg(torch.atan2(across, along)),
            torch.ones_like(length),
        ],
        dim=-1,
    )
    rows = [found[codes.cpu() == code].sum(0) for code in CALIBRATED.values()]
    return quantised(torch.stack(rows))


def updates_of(paths: Sequence[str], sums: Tensor) -> Mapping[str, Mapping[ModalityName, Update]]:
    """Return the means of sums ``[layers, C, 3]``, by layer and modality that has tokens."""
    found: dict[str, dict[ModalityName, Update]] = {}
    for path, of_layer in zip(paths, sums, strict=True):
        for name, (magnitude, angle, tokens) in zip(CALIBRATED, of_layer.tolist(), strict=True):
            if tokens:
                update = Update(magnitude / tokens, angle / tokens, int(tokens))
                found.setdefault(path, {})[name] = update
    return found
