"""Mean compensation on an attached model: the buffers that its markers carry besides thresholds."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from modes_fx.hooks import MEAN_SUMS, MEANS, Attachment
from modes_fx.policy import SkipPolicy


def policy_means(
    policy: SkipPolicy | None, target: float | None, layers: Iterable[str]
) -> dict[str, Tensor]:
    """Return what a policy adds for skipped pairs at a target, by layer; only layers that have it.

    Raises:
        PolicyError: the policy was read without its means.
    """
    if policy is None:
        return {}
    found = {path: policy.mean_outputs(path, target) for path in layers}
    return {path: table for path, table in found.items() if table is not None}


def make_room_for_means(attachment: Attachment, policy: SkipPolicy | None) -> None:
    """Give every layer that any target of a policy has means for a buffer for them.

    Whether there is one decides what graphs look like, so it does not depend on the target in use.
    """
    for target in policy.targets if policy is not None else ():
        for path, table in policy_means(policy, target, attachment.layers).items():
            add_buffer(attachment.layers[path], MEANS, table.shape, table.dtype)


def set_means(attachment: Attachment, means: Mapping[str, Tensor]) -> None:
    """Write what is added for skipped pairs; layers that are not named add nothing.

    Args:
        attachment: of a model whose layers have buffers for means.
        means: ``{layer path: [C, E, H]}``, the strength included.
    """
    for path, layer in attachment.layers.items():
        buffer = getattr(layer, MEANS)
        if path in means:
            buffer.copy_(means[path])
        elif buffer is not None:
            buffer.zero_()


def put_means(attachment: Attachment, means: Mapping[str, Tensor]) -> None:
    """Like :func:`set_means`, but buffers come and go with the means, as calibration needs it.

    Graphs are captured anew for a layer that gets its first means, or has none any more.
    """
    for path, layer in attachment.layers.items():
        table = means.get(path)
        buffer = getattr(layer, MEANS)
        if table is None:
            setattr(layer, MEANS, None)
        elif buffer is None or buffer.shape != table.shape or buffer.dtype != table.dtype:
            add_buffer(layer, MEANS, table.shape, table.dtype)
    set_means(attachment, means)


def add_buffer(layer: nn.Module, name: str, shape: Iterable[int], dtype: torch.dtype) -> None:
    """Put a buffer of zeros in the place that ``attach`` keeps for it on a layer."""
    device = next(layer.parameters()).device
    # Buffers made in inference mode could not be written outside it.
    with torch.inference_mode(False):
        setattr(layer, name, torch.zeros(tuple(shape), dtype=dtype, device=device))


def collect_sums(attachment: Attachment, shapes: Mapping[str, tuple[int, int, int]]) -> None:
    """Have graphs that are captured from now on add up what skipped pairs would have contributed.

    Args:
        attachment: of the model.
        shapes: (C, E, H) of each layer.
    """
    for path, (codes, experts, hidden) in shapes.items():
        shape = (codes, experts, hidden + 1)
        add_buffer(attachment.layers[path], MEAN_SUMS, shape, torch.float32)


def drop_sums(attachment: Attachment) -> None:
    """End what :func:`collect_sums` began."""
    for layer in attachment.layers.values():
        setattr(layer, MEAN_SUMS, None)


def collected_sums(attachment: Attachment) -> dict[str, Tensor]:
    """Return what was added up so far, as ``modes_fx.kernels.means.collect_skipped`` describes."""
    sums = {path: getattr(layer, MEAN_SUMS) for path, layer in attachment.layers.items()}
    return {path: total.cpu() for path, total in sums.items() if total is not None}
