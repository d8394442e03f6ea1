"""Make the Triton kernels the CUDA implementation of the ops, ROCm included.

Where they cannot run, PyTorch's own operations do the same, and a warning says why and what to do.
Those read on the host how many pairs are kept, which no CUDA graph can hold, so they are refused
while one is captured.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from modes_fx.kernels import compact, reference
from modes_fx.kernels.epilogue import Body

MISSING = "Triton is not installed"


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def register_cuda() -> None:
    """Register the CUDA implementations of ``modes_fx::gate`` and ``modes_fx::experts``."""
    torch.library.register_kernel("modes_fx::gate", "cuda", gate)
    torch.library.register_kernel("modes_fx::experts", "cuda", experts)


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
    """See ``modes_fx.ops.gate``: one launch."""
    _check_codes(index, modality, tokens)
    if has_triton():
        from modes_fx.kernels.triton import compaction  # imports Triton

        options = compaction.Gate(modality, tokens, theta, share, kept_mass_exponent, min_k)
        return compaction.gate(index, weight, num_experts, options)
    if tokens is not None:
        torch._assert_async((tokens == len(index)) | (tokens == 0))
    return reference.gate(
        index, weight, modality, theta, num_experts, share, kept_mass_exponent, min_k
    )


def experts(
    x: Tensor, index: Tensor, weight: Tensor, params: Sequence[Tensor], body: str, num_experts: int
) -> Tensor:
    """See ``modes_fx.ops.experts``: the Triton kernels, or PyTorch with a warning.

    Raises:
        RuntimeError: the Triton kernels cannot run this, and a CUDA graph is being captured.
    """
    if not has_triton():
        return portable(x, index, weight, params, body, num_experts, MISSING)
    from modes_fx.kernels.triton import launch  # imports Triton
    from modes_fx.kernels.triton.limits import DeviceLimitError
    from modes_fx.kernels.triton.plan import UnsupportedBodyError

    try:
        return launch.experts(x, index, weight, params, body, num_experts)
    except (UnsupportedBodyError, DeviceLimitError) as error:
        return portable(x, index, weight, params, body, num_experts, str(error))


def gated_experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor | None,
    theta: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``modes_fx.fused_ops.gated_experts``: the gate is part of the kernels that sort."""
    _check_codes(index, modality, tokens)
    if has_triton():
        from modes_fx.kernels.triton import compaction, launch  # imports Triton
        from modes_fx.kernels.triton.limits import DeviceLimitError
        from modes_fx.kernels.triton.plan import UnsupportedBodyError

        options = compaction.Gate(modality, tokens, theta, share, kept_mass_exponent, min_k)
        try:
            return launch.gated_experts(x, index, weight, options, params, body, num_experts)
        except (UnsupportedBodyError, DeviceLimitError):
            pass  # the experts say why when they are called below
    kept_index, kept_weight = gate(
        index, weight, modality, tokens, theta, num_experts, share, kept_mass_exponent, min_k
    )
    out = experts(x, kept_index, kept_weight, params, body, num_experts)
    return out, kept_index, kept_weight


def portable(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    params: Sequence[Tensor],
    body: str,
    num_experts: int,
    reason: str,
) -> Tensor:
    """Run the experts through PyTorch's own operations, and say so once for each reason.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"these experts cannot run in a CUDA graph: {reason}, so they run through PyTorch, "
            "which reads counts on the host. Compile without CUDA graphs (not with "
            'mode="reduce-overhead"), or ' + _remedy(reason)
        )
    parsed = Body.from_json(body)
    _warn(reason, parsed.summary())
    return compact.experts(x, index, weight, params, parsed, num_experts)


def _check_codes(index: Tensor, modality: Tensor, tokens: Tensor | None) -> None:
    if tokens is None and len(modality) != len(index):
        raise ValueError(
            f"{len(index)} tokens reach the experts, with {len(modality)} modality codes"
        )


@cache  # one warning for each reason and body, whatever filters are set
def _warn(reason: str, summary: str) -> None:
    warnings.warn(
        f"experts ({summary}) run through PyTorch's own operations, which is correct but slower: "
        f"{reason}. To use the Triton kernels, {_remedy(reason)}",
        stacklevel=4,
    )


def _remedy(reason: str) -> str:
    if reason == MISSING:
        return 'install them: pip install "modes-fx[gpu]"'
    return "report this body and its reason as an issue"
