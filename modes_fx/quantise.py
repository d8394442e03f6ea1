"""Quantise the weights of a model's experts: int8, int4, or some experts of each.

Weights alone are quantised, with torchao's primitives. A quantised weight becomes a parametrisation
of the module that owns it (``torch.nn.utils.parametrize``): the module reads it as before, in its
own dtype, and gets it computed from the stored integers. So the model's own code still runs, every
expert at once, and the backend finds the integers behind what that code reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modes_fx.attach import find_expert_modules, is_attached

Bits = Literal[4, 8]

DEFAULT_GROUP = 32

# E experts, N output columns, K input columns of a matrix; G groups of K.


@dataclass(frozen=True)
class Quantised:
    """What :func:`quantise_experts` did.

    Attributes:
        layers: the modules whose weights are quantised, by path.
        bytes_before: of their weights.
        bytes_after: of the integers and scales.
    """

    layers: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def quantise_experts(
    model: nn.Module,
    bits: Bits | Mapping[str, Sequence[Bits]] = 8,
    *,
    group_size: int = DEFAULT_GROUP,
) -> Quantised:
    """Quantise the stacked expert weights ``[E, ., .]`` of a model in place; cannot be undone.

    8 bits: symmetric int8, one scale for each expert and output column; CPU kernels read it as it
    is. 4 bits: symmetric int4, two in a byte, one scale for each ``group_size`` values of k; no
    kernel reads it, so a compiled graph computes the weights of all experts at every call.

    Args:
        model: not attached; experts whose weights are parameters ``[E, N, K]``, or ``[E, K, N]``
            where the module says so by ``is_transposed``, in float32 or bfloat16.
        bits: 8 or 4 for all experts, or for each layer path the bits of each of its experts.
        group_size: of 4 bits; must divide K.

    Returns:
        Which layers, and how many bytes they take.

    Raises:
        ImportError: torchao is not installed.
        ValueError: the model is attached, has no such experts, or bits or sizes do not fit.
    """
    if is_attached(model):
        raise ValueError(
            "the model is attached: call modes_fx.detach(model), quantise, then attach"
        )
    chosen = _stacks_of(model)
    if isinstance(bits, Mapping) and (unknown := sorted(set(bits) ^ set(chosen))):
        raise ValueError(f"bits must be given for the layers {', '.join(chosen)}: see {unknown[0]}")
    for path, names in chosen.items():
        for name in names:
            wanted = bits[path] if isinstance(bits, Mapping) else bits
            _check(path, name, model.get_submodule(path), wanted, group_size)
    before = after = 0
    for path, names in chosen.items():
        module = model.get_submodule(path)
        of_expert = bits[path] if isinstance(bits, Mapping) else bits
        for name in names:
            before += _bytes(module.get_parameter(name))
            after += _replace(module, name, of_expert, group_size)
    torch.compiler.reset()
    return Quantised(tuple(chosen), before, after)


def least_used(choices: Mapping[str, Tensor], share: float = 0.5) -> dict[str, list[Bits]]:
    """Return bits for each expert: 4 for the least used of every layer, 8 for the others.

    Args:
        choices: for each layer path, ``[E]`` how often each expert was chosen.
        share: of a layer's experts that get 4 bits.

    Raises:
        ValueError: ``share`` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    found: dict[str, list[Bits]] = {}
    for path, counts in choices.items():
        rank = counts.argsort(stable=True).argsort()
        few = rank < round(share * len(counts))
        found[path] = [4 if low else 8 for low in few.tolist()]
    return found


class Int8Weight(nn.Module):
    """Computes ``[E, N, K]`` (or its transpose) from int8 of that shape.

    Attributes:
        scale: ``[E, N]`` in the dtype of the weight.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, transposed: bool) -> None:
        """``transposed``: whether the module reads ``[E, K, N]``."""
        super().__init__()
        self.register_buffer("scale", scale)
        self._transposed = transposed

    def forward(self, integers: Tensor) -> Tensor:
        """Return the weight."""
        weight = integers.to(self.scale.dtype) * self.scale.unsqueeze(-1)
        return weight.transpose(1, 2) if self._transposed else weight


class Int4Weight(nn.Module):
    """Computes ``[E, N, K]`` (or its transpose) from bytes ``[E, N, K / 2]`` of two values each.

    Attributes:
        scale: ``[E, N, G]`` in the dtype of the weight.
    """

    scale: Tensor

    def __init__(self, scale: Tensor, transposed: bool) -> None:
        """``transposed``: whether the module reads ``[E, K, N]``."""
        super().__init__()
        self.register_buffer("scale", scale)
        self._transposed = transposed

    def forward(self, packed: Tensor) -> Tensor:
        """Return the weight."""
        E, N, half = packed.shape
        pairs = torch.stack((packed & 15, packed >> 4), dim=-1)
        integers = pairs.view(E, N, self.scale.shape[2], -1).to(self.scale.dtype) - 8
        weight = (integers * self.scale.unsqueeze(-1)).view(E, N, 2 * half)
        return weight.transpose(1, 2) if self._transposed else weight


class MixedWeight(nn.Module):
    """Computes the weight from int8 of some experts and int4 of the others.

    Attributes:
        packed: the others' bytes, see :class:`Int4Weight`.
        place: ``[E]`` where each expert is among those of 8 bits followed by those of 4.
    """

    packed: Tensor
    place: Tensor

    def __init__(
        self, int8: Int8Weight, int4: Int4Weight, packed: Tensor, place: Tensor, transposed: bool
    ) -> None:
        """Take the parts; ``transposed`` as in them, which are not transposed themselves."""
        super().__init__()
        self.int8, self.int4 = int8, int4
        self.register_buffer("packed", packed)
        self.register_buffer("place", place)
        self._transposed = transposed

    def forward(self, integers: Tensor) -> Tensor:
        """Return the weight."""
        weight = torch.cat((self.int8(integers), self.int4(self.packed)))[self.place]
        return weight.transpose(1, 2) if self._transposed else weight


def quantise_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 ``[E, N, K]`` and scales ``[E, N]`` of a weight, which they are rounded with."""
    integers, scale = _affine(weight, weight.shape[-1], torch.int8, -127, 127)
    return integers, scale.view(weight.shape[:2])


def quantise_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return bytes ``[E, N, K / 2]`` and scales ``[E, N, K / group_size]`` of a weight."""
    integers, scale = _affine(weight, group_size, torch.int8, -8, 7)
    low, high = ((integers + 8).to(torch.uint8).unflatten(-1, (-1, 2))).unbind(-1)
    return low | (high << 4), scale.view(*weight.shape[:2], -1)


@torch.no_grad()
def _affine(
    weight: Tensor, group: int, dtype: torch.dtype, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """Quantise ``[E, N, K]``, one expert at a time: what that takes in between is float32."""
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    found = []
    for matrix in weight:
        scale, zero = choose_qparams_affine(
            matrix,
            MappingType.SYMMETRIC,
            (1, group),
            dtype,
            low,
            high,
            scale_dtype=weight.dtype,
        )
        integers = quantize_affine(matrix, (1, group), scale, zero, dtype, low, high)
        found.append((integers, scale))
    return torch.stack([q for q, _ in found]), torch.stack([s for _, s in found])


def _replace(module: nn.Module, name: str, bits: Bits | Sequence[Bits], group_size: int) -> int:
    """Put a parametrisation in the place of a parameter; return its bytes."""
    parameter = module.get_parameter(name).detach()
    transposed = bool(getattr(module, "is_transposed", False))
    weight = parameter.transpose(1, 2).contiguous() if transposed else parameter
    stored, computes = _stored(weight, bits, group_size, transposed)
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(stored, requires_grad=False))
    parametrize.register_parametrization(module, name, computes.eval(), unsafe=True)
    return _bytes(stored) + sum(map(_bytes, computes.buffers()))


def _stored(
    weight: Tensor, bits: Bits | Sequence[Bits], group_size: int, transposed: bool
) -> tuple[Tensor, nn.Module]:
    if isinstance(bits, Sequence) and len(set(bits)) == 1:
        bits = bits[0]
    if bits == 8:
        integers, scale = quantise_int8(weight)
        return integers, Int8Weight(scale, transposed)
    if bits == 4:
        packed, scale = quantise_int4(weight, group_size)
        return packed, Int4Weight(scale, transposed)
    low = torch.tensor(bits) == 4
    integers, scale = quantise_int8(weight[~low])
    packed, group_scale = quantise_int4(weight[low], group_size)
    place = torch.cat((torch.where(~low)[0], torch.where(low)[0])).argsort()
    parts = Int8Weight(scale, False), Int4Weight(group_scale, False)
    return integers, MixedWeight(*parts, packed, place.to(weight.device), transposed)


def _stacks_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the weights ``[E, ., .]`` that modules own, by path.

    Raises:
        ValueError: there are none.
    """
    chosen = {}
    for path, module in find_expert_modules(model).items():
        own = dict(module.named_parameters(recurse=False))
        if names := [name for name, weight in own.items() if weight.dim() == 3]:
            chosen[path] = names
    if not chosen:
        raise ValueError(
            f"{type(model).__name__} has no module with stacked expert weights [E, ., .] that are "
            "not quantised yet: experts that are modules of their own can be quantised by torchao"
        )
    return chosen


def _check(
    path: str, name: str, module: nn.Module, bits: Bits | Sequence[Bits], group_size: int
) -> None:
    weight = module.get_parameter(name)
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"{path}.{name} is {weight.dtype}: quantised experts are for float32 and bfloat16, "
            "convert the model first"
        )
    if isinstance(bits, Sequence) and len(bits) != len(weight):
        raise ValueError(f"{path} has {len(weight)} experts, and bits were given for {len(bits)}")
    given = set(bits) if isinstance(bits, Sequence) else {bits}
    if not given <= {4, 8}:
        raise ValueError(f"bits must be 4 or 8, got {', '.join(map(str, sorted(given)))}")
    K = weight.shape[1 if getattr(module, "is_transposed", False) else 2]
    if 4 in given and (K % group_size or group_size % 2):
        raise ValueError(
            f"{path}.{name} has {K} input columns, which groups of {group_size} do not divide, or "
            "not into pairs: choose another group_size"
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
