"""See or change the (token, expert) pairs that an unmodified model computes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from modes_fx.attach import find_expert_modules
from modes_fx.calibration.data import token_codes
from modes_fx.kernels.reference import routing_share
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import CALIBRATED, ModalityName

PairHook = Callable[[str, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""Called in front of each layer's experts with (layer path, codes ``[T]``, x ``[T, H]``, index
``[T, K]``, weight ``[T, K]``); may return another (index, weight) in place of the router's."""

Shares = dict[str, dict[ModalityName, Tensor]]
"""Routing shares by layer path and modality, float32 ``[pairs]``."""

Chosen = dict[str, dict[ModalityName, Tensor]]
"""The experts of the same pairs in the same order, int32 ``[pairs]``."""


@contextmanager
def hooked_pairs(
    model: PreTrainedModel,
    hook: PairHook,
    special_token_ids: Iterable[int] = (),
    layers: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Call a hook in front of every layer's experts, in calls that name their arguments.

    Args:
        model: a transformers model whose experts modules take (x ``[T, H]``, index, weight).
        hook: see :data:`PairHook`.
        special_token_ids: tokens whose code is OTHER.
        layers: the modules that own experts, by path; looked for if not given.

    Raises:
        ValueError: in a call, where experts take something else or see a part of the tokens.
    """
    special, current = tuple(special_token_ids), {}

    def begin_call(
        module: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        current["codes"] = token_codes(module, kwargs, special)

    def before_experts(path: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        codes = current["codes"]
        shapes = [tuple(a.shape) for a in args[1:3] if isinstance(a, Tensor)]
        if len(shapes) < 2 or shapes[0] != shapes[1] or shapes[0][0] != len(codes):
            raise ValueError(
                f"the experts {path} are not called with (x, index [T, K], weight [T, K]) for the "
                f"{len(codes)} tokens of the call, but with tensors of shapes {shapes} after x"
            )
        index, weight, *rest = args[1:]
        changed = hook(path, codes.to(index.device), args[0], index, weight)
        return None if changed is None else (args[0], *changed, *rest)

    with ExitStack() as hooks:
        handle = model.register_forward_pre_hook(begin_call, with_kwargs=True)
        hooks.callback(handle.remove)
        for path, layer in (layers or find_expert_modules(model)).items():
            handle = layer.register_forward_pre_hook(
                lambda _, args, path=path: before_experts(path, args)
            )
            hooks.callback(handle.remove)
        yield


@contextmanager
def recorded_shares(model: PreTrainedModel, policy: SkipPolicy, every: int = 1) -> Iterator[Shares]:
    """Collect the routing shares of the calls made inside the ``with`` block.

    Args:
        model: as for :func:`hooked_pairs`.
        policy: says which share is compared with thresholds, and which tokens are special.
        every: take one of so many tokens.

    Yields:
        The shares, complete when the block ends.
    """

    def share(index: Tensor, weight: Tensor) -> Tensor:
        return routing_share(weight, policy.share_for(weight.shape[1]))

    with _recorded(model, policy, every, share) as shares:
        yield shares


@contextmanager
def recorded_experts(
    model: PreTrainedModel, policy: SkipPolicy, every: int = 1
) -> Iterator[Chosen]:
    """Collect which experts the pairs are of whose shares :func:`recorded_shares` collects."""
    with _recorded(model, policy, every, lambda index, weight: index.int()) as experts:
        yield experts


@contextmanager
def _recorded(
    model: PreTrainedModel,
    policy: SkipPolicy,
    every: int,
    value: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[dict[str, dict[ModalityName, Tensor]]]:
    """Collect a value ``[T, K]`` of every pair, by layer and modality."""
    parts: dict[str, dict[ModalityName, list[Tensor]]] = {}
    found: dict[str, dict[ModalityName, Tensor]] = {}

    def collect(path: str, codes: Tensor, x: Tensor, index: Tensor, weight: Tensor) -> None:
        values = value(index[::every], weight[::every]).cpu()
        of_layer = parts.setdefault(path, {name: [] for name in CALIBRATED})
        for name, code in CALIBRATED.items():
            of_layer[name].append(values[codes[::every].cpu() == code].flatten())

    special = policy.special_token_ids if policy.special_tokens == "keep" else ()
    with hooked_pairs(model, collect, special):
        yield found
    for path, of_layer in parts.items():
        found[path] = {name: torch.cat(pieces) for name, pieces in of_layer.items()}


def experts_hit(
    experts: Mapping[ModalityName, Tensor],
    shares: Mapping[ModalityName, Tensor],
    theta: Tensor,
) -> dict[ModalityName, int]:
    """Return how many experts of a layer are left with at least one pair, by modality.

    Args:
        experts: of the layer's pairs, by modality.
        shares: of the same pairs.
        theta: ``[M]`` by modality code; pairs whose share reaches it are kept.
    """
    return {
        name: int(chosen[shares[name] >= theta[CALIBRATED[name]].cpu()].unique().numel())
        for name, chosen in experts.items()
        if len(chosen)
    }
