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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modes_fx.kernels import compact, cpu, reference
from modes_fx.kernels.epilogue import Body
from modes_fx.kernels.triton.register import has_triton, register_cuda


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


# Goes straight to a C++ kernel: while a graph is captured, torch's dispatcher in Python still holds
# what it resolved before the library was loaded.
_CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

# Plain definitions rather than custom_op: its autograd key would run Python in front of the C++
# kernels, which costs more than a whole gate in decode.
_library = torch.library.Library("modes_fx", "FRAGMENT")
_library.define(
    "gate(Tensor index, Tensor weight, Tensor modality, Tensor? tokens, Tensor theta, "
    "SymInt num_experts, str share, float kept_mass_exponent, SymInt min_k) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# Without Triton, how many pairs are kept is read on the host, which no CUDA graph can capture.
EXPERTS_TAGS = (
    (torch.Tag.pt2_compliant_tag,)
    if has_triton()
    else (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
)
for op in ("experts", "experts_unfused"):
    _library.define(
        f"{op}(Tensor x, Tensor index, Tensor weight, Tensor[] params, str body, "
        "SymInt num_experts) -> Tensor",
        tags=EXPERTS_TAGS,
    )
_library.define(
    "sort_pairs(Tensor index, Tensor weight, SymInt num_experts) -> "
    "(Tensor, Tensor, Tensor, Tensor)"
)


def implements(op: str) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Make a function what an op runs where a device has no kernel of its own; return the op."""

    def register(function: Callable[..., Any]) -> torch._ops.OpOverload:
        _library.impl(op, function, "CompositeExplicitAutograd")
        overload: torch._ops.OpOverload = getattr(torch.ops.modes_fx, op).default
        return overload

    return register


@implements("gate")
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


@torch.library.register_fake("modes_fx::gate", lib=_library)
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


@implements("experts")
def experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> Tensor:
    """See ``modes_fx.kernels.reference.experts``; ``body`` is its JSON.

    On a CPU this runs once in a process: it loads the C++ library, which takes the op over. Without
    a C++ compiler, and on other devices, it is the portable implementation.
    """
    if x.device.type == "cpu" and cpu.load_library():
        return _run_on_cpu(x, index, weight, params, body, num_experts)
    return compact.experts(x, index, weight, params, Body.from_json(body), num_experts)


@implements("experts_unfused")
def experts_unfused(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> Tensor:
    """Compute the experts where the C++ library has no kernel for a body and its parameters.

    The first time, such a kernel is generated, built and used. Where that cannot be, the portable
    implementation runs and a warning says why.
    """
    if cpu.load_kernel(body, x.dtype, params):
        return _run_on_cpu(x, index, weight, params, body, num_experts)
    return compact.experts(x, index, weight, params, Body.from_json(body), num_experts)


def _run_on_cpu(*args: Any) -> Tensor:
    result: Tensor = torch.ops.modes_fx.experts.default.redispatch(_CPU_KEYS, *args)
    return result


@torch.library.register_fake("modes_fx::experts", lib=_library)
@torch.library.register_fake("modes_fx::experts_unfused", lib=_library)
def _(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
) -> Tensor:
    return x.new_empty(x.shape)


@implements("sort_pairs")
def sort_pairs(
    index: Tensor, weight: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first step of the experts op by itself, for tests and measurements.

    See ``modes_fx.kernels.reference.sort_pairs``. How many pairs there are depends on the data, so
    no graph can hold it.
    """
    if index.device.type == "cpu" and cpu.load_library():
        sorted_: tuple[Tensor, Tensor, Tensor, Tensor] = (
            torch.ops.modes_fx.sort_pairs.default.redispatch(_CPU_KEYS, index, weight, num_experts)
        )
        return sorted_
    return reference.sort_pairs(index, weight, num_experts)


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


register_cuda()
