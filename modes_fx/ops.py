"""The ops a rewritten graph consists of: schemas, fakes and dispatch to the kernels.

- ``modes_fx::marker`` stands in front of the experts of an attached model and carries what the
  model's own graph does not hold: the layer's thresholds and each token's modality. The backend
  consumes it; it computes nothing.
- ``modes_fx::codes_of_rows`` gives the modality of rows before a block picks some of them.
- ``modes_fx::gate`` turns the router's choice into the kept pairs.
- ``modes_fx::experts`` computes the kept pairs.
- ``modes_fx::count_pairs`` adds up how many pairs were kept, for reports.
- ``modes_fx.mean_ops`` has two more, for what skipped experts put out on average.

T tokens, K experts per token, E experts, H hidden size, M modality codes.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from modes_fx.kernels import compact, reference
from modes_fx.kernels.epilogue import Body


@torch.library.custom_op("modes_fx::marker", mutates_args=())
def marker(
    x: Tensor,
    theta: Tensor,
    modality: Tensor,
    tokens: Tensor,
    counts: Tensor,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
    means: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Return ``x``; carry the layer's gate arguments to the backend.

    Reaching this implementation means that nothing was rewritten: the layer runs as the model wrote
    it, every expert is computed, and the caller is told so.
    """
    warnings.warn(
        "a skipping policy is attached, but this call did not go through modes_backend, so every "
        "expert is computed. Call the object torch.compile(model, backend=modes_backend) returned; "
        "for model.generate use model.compile(backend=modes_backend), which compiles in place.",
        stacklevel=2,
    )
    return x.clone()


@marker.register_fake
def _(
    x: Tensor,
    theta: Tensor,
    modality: Tensor,
    tokens: Tensor,
    counts: Tensor,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
    means: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x)


marker.register_autograd(lambda ctx, grad: (grad, *[None] * 9))


@torch.library.custom_op("modes_fx::codes_of_rows", mutates_args=())
def codes_of_rows(modality: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """Return the modality code of every row of ``rows``, which hold all tokens of the call.

    Where a block runs its experts on a part of the tokens, these codes are picked as their rows
    are, and then given to the gate.

    Args:
        modality: ``[>= T]`` int8 codes.
        tokens: ``[1]`` int64, see :func:`gate`.
        rows: ``[.., H]``, T rows.

    Returns:
        int8 codes of the shape of ``rows`` without H.

    Raises:
        ValueError: these are not the tokens of the call, so their modality is not known.
    """
    shape = rows.shape[:-1]
    _check_tokens(tokens, shape.numel())
    return modality[: shape.numel()].reshape(shape).clone()


@codes_of_rows.register_fake
def _(modality: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    return modality.new_empty(rows.shape[:-1])


@torch.library.custom_op("modes_fx::gate", mutates_args=())
def gate(
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor | None,
    theta: Tensor,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[Tensor, Tensor]:
    """See ``modes_fx.kernels.reference.gate``.

    ``tokens``, ``[1]`` int64, says how many tokens the call has whose modality is given; 0 where no
    call is in flight and all are OTHER; None where ``modality`` was picked for just these tokens.

    Raises:
        ValueError: these are not the tokens of the call, so their modality is not known.
    """
    if tokens is not None:
        _check_tokens(tokens, len(index))
    elif len(modality) != len(index):
        raise ValueError(
            f"{len(index)} tokens reach the experts, with {len(modality)} modality codes"
        )
    return reference.gate(
        index, weight, modality, theta, num_experts, share, kept_mass_exponent, min_k
    )


@gate.register_fake
def _(
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor | None,
    theta: Tensor,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[Tensor, Tensor]:
    return index.new_empty(index.shape), weight.new_empty(weight.shape)


# The implementation reads how many pairs are kept on the host, which a CUDA graph cannot capture.
@torch.library.custom_op("modes_fx::experts", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> Tensor:
    """See ``modes_fx.kernels.reference.experts``; ``body`` is its JSON."""
    return compact.experts(x, index, weight, params, Body.from_json(body), num_experts)


@experts.register_fake
def _(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("modes_fx::count_pairs", mutates_args=("counts",))
def count_pairs(counts: Tensor, index: Tensor, modality: Tensor, num_experts: int) -> None:
    """Add this call's pairs to ``counts``.

    Args:
        counts: ``[M, 2]`` int64; by modality code: all pairs, kept pairs. Changed in place.
        index: ``[T, K]`` the gate's choice; ids >= ``num_experts`` are skipped pairs.
        modality: ``[>= T]`` int8 codes.
        num_experts: E.
    """
    code = modality[: len(index)].long()
    kept = (index < num_experts).sum(-1)
    pairs = torch.full_like(kept, index.shape[1])
    counts.index_add_(0, code, torch.stack((pairs, kept), dim=-1))


@count_pairs.register_fake
def _(counts: Tensor, index: Tensor, modality: Tensor, num_experts: int) -> None:
    return None


def _check_tokens(tokens: Tensor, reached: int) -> None:
    if tokens.device.type != "cpu":
        torch._assert_async((tokens == reached) | (tokens == 0))
    elif (expected := int(tokens)) not in (0, reached):
        raise ValueError(
            f"{reached} tokens reach the experts, but the call has {expected}: their modality is "
            "not known. Compile the model while it computes this layer for all tokens, or detach it"
        )
