"""What our kernels are timed against: other ways to run the same experts after the same gate.

Each takes hidden states ``[T, H]``, kept experts ``[T, K]`` (id E where skipped) and kept weights,
and returns ``[T, H]``.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.moe import grouped_mm_experts_forward

from modes_fx.bench.gpu.shapes import Layer

Peer = Callable[[Tensor, Tensor, Tensor], Tensor]


def peers_of(layer: Layer, params: Sequence[Tensor]) -> dict[str, Peer]:
    """Return the peers that can run a layer here, by name.

    They know experts of the form "gated"; for others there is none.
    """
    if layer.form != "gated":
        return {}
    up, down = params
    peers: dict[str, Peer] = {
        "transformers grouped_mm": _transformers(layer, up, down),
        "torch _grouped_mm": _torch(layer, up, down),
    }
    if find_spec("vllm") is not None:
        peers["vLLM fused_moe"] = _vllm(layer, up, down)
    return peers


def _transformers(layer: Layer, up: Tensor, down: Tensor) -> Peer:
    """The experts of transformers, told that ids >= E are those of other devices."""

    def gate(rows: Tensor) -> Tensor:
        first, second = rows.chunk(2, dim=-1)
        return functional.silu(first) * second

    module = SimpleNamespace(
        num_experts=layer.experts,
        gate_up_proj=up,
        down_proj=down,
        has_gate=True,
        has_bias=False,
        is_transposed=False,
        has_post_expert_norm=False,
        _is_expert_parallel=True,
        _apply_gate=gate,
    )
    # A stand-in for the module, of which the function reads these attributes only.
    return lambda x, index, weight: grouped_mm_experts_forward(module, x, index, weight)


def _torch(layer: Layer, up: Tensor, down: Tensor) -> Peer:
    """The least that torch itself needs: sort, gather, two grouped products, and a scatter."""

    def run(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ordered, perm = index.flatten().sort(stable=True)
        bounds = torch.arange(1, layer.experts + 1, device=x.device)
        offsets = torch.searchsorted(ordered, bounds).to(torch.int32)
        rows = torch._grouped_mm(x[perm // layer.top_k], up.transpose(1, 2), offs=offsets)
        first, second = rows.chunk(2, dim=-1)
        rows = functional.silu(first) * second
        rows = torch._grouped_mm(rows, down.transpose(1, 2), offs=offsets)
        is_kept = (ordered < layer.experts)[:, None]
        rows = torch.where(is_kept, rows * weight.flatten()[perm, None], 0)
        restored = torch.empty_like(rows)
        restored[perm] = rows
        return restored.view(len(x), layer.top_k, -1).sum(1)

    return run


def _vllm(layer: Layer, up: Tensor, down: Tensor) -> Peer:
    """VLLM's Triton kernels, told by a map of experts that id E is on no device."""
    from vllm.model_executor.layers.fused_moe import fused_experts  # not a dependency of ours

    places = torch.arange(layer.experts + 1, dtype=torch.int32, device=up.device)
    places[-1] = -1

    def run(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = fused_experts(
            x,
            up,
            down,
            weight.float(),
            index.to(torch.int32),
            global_num_experts=layer.experts + 1,
            expert_map=places,
        )
        return result

    return run
