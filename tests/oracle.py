"""Skipping in the unmodified model, run eagerly: what every compiled call is compared with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modes_fx.attach import find_expert_modules
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality


def middle_threshold(pristine: nn.Module, call: dict, fraction: float) -> float:
    """A threshold in the middle of a gap between observed shares, so that rounding changes nothing.

    About ``fraction`` of the shares lie below it.
    """
    shares = []

    def record(_, args) -> None:
        shares.append(reference.routing_share(args[2], "renormalised").flatten())

    handles = [
        layer.register_forward_pre_hook(record) for layer in find_expert_modules(pristine).values()
    ]
    pristine(**call)
    for handle in handles:
        handle.remove()
    ordered = torch.cat(shares).sort().values
    start = int(fraction * len(ordered))
    gaps = ordered[1:] - ordered[:-1]
    widest = start + int(gaps[start : start + len(ordered) // 5].argmax())
    return float((ordered[widest] + ordered[widest + 1]) / 2)


@contextmanager
def eager_oracle(
    model: nn.Module,
    thetas: dict[str, torch.Tensor],
    modality: torch.Tensor,
    *,
    kept_mass_exponent: float = 0.0,
    means: dict[str, torch.Tensor] | None = None,
) -> Iterator[None]:
    """Skip in the unmodified model by giving skipped pairs the weight 0.

    ``means`` ``{layer: [C, E, H]}`` are added in the place of skipped pairs.
    """

    def gated(theta, args):
        x, index, weight = args
        kept, kept_weight = reference.gate(
            index, weight, modality, theta, 8, "renormalised", kept_mass_exponent
        )
        return x, index, weight, kept, kept_weight

    def zero_skipped(theta, args):
        x, index, weight, kept, kept_weight = gated(theta, args)
        given[id(x)] = (index, weight, kept)
        return x, index, kept_weight

    def compensate(path, args, output):
        index, weight, kept = given.pop(id(args[0]))
        return reference.add_skipped_means(output, index, weight, kept, modality, means[path])

    given = {}
    handles = []
    for path, theta in thetas.items():
        layer = model.get_submodule(path)
        handles.append(
            layer.register_forward_pre_hook(lambda _, args, theta=theta: zero_skipped(theta, args))
        )
        if means is not None:
            handles.append(
                layer.register_forward_hook(
                    lambda _, args, output, path=path: compensate(path, args, output)
                )
            )
    yield
    for handle in handles:
        handle.remove()


def codes_of(call: dict) -> torch.Tensor:
    codes = call["mm_token_type_ids"].clone()
    codes[call["attention_mask"] == 0] = Modality.PADDING
    return codes.flatten()
