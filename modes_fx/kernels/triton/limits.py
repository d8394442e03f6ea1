"""What a GPU can hold: its shared memory, its multiprocessors, and what a GEMM needs of them.

Triton finds out that a kernel needs more shared memory than there is only when it loads it, so the
need is computed before, and the configuration made smaller until it fits.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from modes_fx.kernels.triton.config import GemmConfig

KIBIBYTE = 1024

SHARED_BYTES = {
    "sm_80": 163 * KIBIBYTE,
    "sm_86": 99 * KIBIBYTE,
    "sm_89": 99 * KIBIBYTE,
    "sm_90": 227 * KIBIBYTE,
    "sm_100": 227 * KIBIBYTE,
    "sm_103": 227 * KIBIBYTE,
    "sm_120": 99 * KIBIBYTE,
    "gfx942": 64 * KIBIBYTE,
    "gfx950": 160 * KIBIBYTE,
}
"""The most that one program can have, by target; for devices that are not at hand."""


BARRIER_BYTES = 64
"""What loads that are under way need to be waited for, at most."""


class DeviceLimitError(ValueError):
    """No configuration of a GEMM fits the device."""


@dataclass(frozen=True)
class Device:
    """A device as the launches see it.

    Attributes:
        target: ``sm_90``, ``gfx942``, ...; ``interpreter`` where kernels run without a GPU.
        multiprocessors: how many there are.
        shared_bytes: the most shared memory that one program can have.
    """

    target: str
    multiprocessors: int
    shared_bytes: int

    @property
    def has_float8(self) -> bool:
        """Whether it converts ``torch.float8_e4m3fn``."""
        if self.target.startswith("sm_"):
            return int(self.target.removeprefix("sm_")) >= 89
        return self.target in ("gfx950", "interpreter")

    @property
    def is_amd(self) -> bool:
        """Whether it is an AMD device."""
        return self.target.startswith("gfx")


INTERPRETER = Device("interpreter", multiprocessors=3, shared_bytes=1 << 40)
"""Stands for the CPU where Triton interprets its kernels: three programs take turns."""


@lru_cache(maxsize=16)
def device_of(device: torch.device) -> Device:
    """Describe a device that torch can see."""
    if device.type == "cpu":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        target = properties.gcnArchName.partition(":")[0]
        shared = SHARED_BYTES.get(target, 64 * KIBIBYTE)
    else:
        target = f"sm_{properties.major}{properties.minor}"
        # The stubs of torch do not know the property.
        shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return Device(target, properties.multi_processor_count, shared)


def shared_need(
    gemm: GemmConfig, products: int, row_bytes: int, weight_bytes: int, target: str
) -> int:
    """Return the bytes of shared memory that a GEMM needs at most.

    Triton keeps as many copies of the loaded blocks as there are stages, and one less where data
    passes through registers on its way to the tensor cores. ``make kernels-report`` fails where the
    compiler takes more than this.

    Args:
        gemm: the configuration.
        products: how many blocks of weights are multiplied with one block of rows.
        row_bytes: of one number of the rows.
        weight_bytes: of one number of the weights.
        target: as in :class:`Device`.
    """
    rows = gemm.block_m * gemm.block_k * row_bytes
    weights = products * gemm.block_k * gemm.block_n * weight_bytes
    by_matrix = target.startswith(("sm_9", "sm_10")) and gemm.block_m >= 64
    by_copy = target == "gfx950"  # rows are padded there, against bank conflicts
    copies = gemm.stages if by_matrix or by_copy else max(gemm.stages - 1, 1)
    padding = (rows + weights) * copies // 16 if by_copy else BARRIER_BYTES
    # Narrower weights are widened into a block of their own.
    widened = products * gemm.block_k * gemm.block_n * max(row_bytes - weight_bytes, 0)
    # The result changes its layout on the way out, one accumulator at a time.
    result = 4 * gemm.block_m * gemm.block_n
    return max(copies * (rows + weights) + widened + padding, result)


def fit(
    gemm: GemmConfig, products: int, row_bytes: int, weight_bytes: int, device: Device
) -> GemmConfig:
    """Return a configuration that the device can run: the given one, or the next smaller that fits.

    Raises:
        DeviceLimitError: not even the smallest fits.
    """
    smaller = gemm
    while (need := shared_need(smaller, products, row_bytes, weight_bytes, device.target)) > (
        device.shared_bytes
    ):
        if smaller.stages > 2:
            smaller = smaller.model_copy(update={"stages": smaller.stages - 1})
        elif smaller.block_k > 32:
            smaller = smaller.model_copy(update={"block_k": smaller.block_k // 2})
        elif smaller.block_n > 32:
            smaller = smaller.model_copy(update={"block_n": smaller.block_n // 2})
        elif smaller.block_m > 16:
            smaller = smaller.model_copy(update={"block_m": smaller.block_m // 2})
        else:
            raise DeviceLimitError(
                f"the smallest tile ({smaller.block_m} x {smaller.block_n} x {smaller.block_k}) "
                f"needs {need} bytes of shared memory and {device.target} has "
                f"{device.shared_bytes}: use weights of a smaller dtype, or another device"
            )
    return smaller
