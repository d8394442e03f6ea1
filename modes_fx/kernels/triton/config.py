"""Block sizes: by device, shape, and how many rows an expert is expected to have left.

The number of tokens alone is a bad guide: with most pairs skipped, 4096 tokens leave each of 128
experts some 30 rows. How many are left is known from the policy beforehand, so nothing has to be
read back from the device. Files are JSON, one for each device or family (``configs/``, computed
rather than tuned), and one for each device and shape that ``modes-fx tune`` has measured.
"""

import os
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CONFIG_VERSION = 1
FOLDER_VARIABLE = "MODES_FX_CONFIG_DIR"
SHIPPED = Path(__file__).parent / "configs"


class ConfigError(ValueError):
    """A file of configurations that cannot be read, with what is wrong in it."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GemmConfig(_Strict):
    """One GEMM over sorted rows.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile, of each accumulator.
        block_k: how much of the rows is loaded at a time.
        warps: how many a program has.
        stages: how many loads are under way.
        occupancy: how many programs a multiprocessor runs at once.
    """

    block_m: int = Field(ge=16)
    block_n: int = Field(ge=16)
    block_k: int = Field(ge=16)
    warps: int = Field(ge=1)
    stages: int = Field(ge=1)
    occupancy: int = Field(2, ge=1)


class VectorConfig(_Strict):
    """One product of a single row.

    Attributes:
        block_n: columns of a program.
        block_k: how many numbers are read of the row at a time; fewer if they are of four bytes.
        warps: how many a program has.
    """

    block_n: int = Field(ge=1)
    block_k: int = Field(ge=16)
    warps: int = Field(ge=1)


class PrefillRule(_Strict):
    """The configuration of both GEMMs where an expert has at most ``up_to_rows`` rows.

    Both take tiles of as many rows, because the tiles are counted once. None: any number of rows.
    """

    up_to_rows: float | None = Field(gt=0)
    up: GemmConfig
    down: GemmConfig

    @model_validator(mode="after")
    def _one_tile_height(self) -> "PrefillRule":
        if self.up.block_m != self.down.block_m:
            raise ValueError(
                f"both GEMMs take tiles of as many rows, got {self.up.block_m} and "
                f"{self.down.block_m}"
            )
        return self


class DecodeRule(_Strict):
    """Both products of one token, where weights are contiguous along k (rows) or n (columns)."""

    contiguous: Literal["k", "n"]
    up: VectorConfig
    down: VectorConfig


class Shape(_Strict):
    """What a tuned file is for: E, H, I, how many streams, and the dtype of the weights."""

    experts: int
    hidden: int
    intermediate: int
    streams: int
    dtype: str

    @property
    def slug(self) -> str:
        """The shape as part of a file's name."""
        return f"E{self.experts}-H{self.hidden}-I{self.intermediate}-S{self.streams}-{self.dtype}"


class Configurations(_Strict):
    """All configurations of one device.

    Attributes:
        version: of this format.
        device: the target or family, or the name of the device that was tuned.
        shape: what they were tuned for; None for any.
        origin: ``computed`` from what compiles and fits, or ``tuned`` by measuring.
        triton: the version they were tuned with; they can be wrong for another.
        prefill: by ascending ``up_to_rows``, the last without a bound.
        prefill_float32: the same for rows of four bytes, which tensor cores may not multiply.
        decode: for each way that weights lie in memory.
    """

    version: Literal[1]
    device: str
    shape: Shape | None = None
    origin: Literal["computed", "tuned"]
    triton: str | None = None
    prefill: tuple[PrefillRule, ...] = Field(min_length=1)
    prefill_float32: tuple[PrefillRule, ...] = Field(min_length=1)
    decode: tuple[DecodeRule, ...] = Field(min_length=1)

    def rules(self, dtype: torch.dtype) -> tuple[PrefillRule, ...]:
        """Return the rules for rows of a dtype."""
        return self.prefill_float32 if dtype.itemsize == 4 else self.prefill

    def for_rows(self, rows: float, dtype: torch.dtype) -> PrefillRule:
        """Return the rule for an expected number of rows of an expert, of a dtype."""
        rules = self.rules(dtype)
        fitting = (rule for rule in rules if rule.up_to_rows is None or rows <= rule.up_to_rows)
        return next(fitting, rules[-1])

    def for_layout(self, contiguous: Literal["k", "n"]) -> DecodeRule:
        """Return the rule for weights that are contiguous along k (rows) or n (columns)."""
        return next((rule for rule in self.decode if rule.contiguous == contiguous), self.decode[0])


def user_folder() -> Path:
    """Return where tuned files are kept: $MODES_FX_CONFIG_DIR, or the user's configuration."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(chosen) if chosen else Path(base) / "modes_fx" / "triton"


def tuned_path(device_name: str, shape: Shape) -> Path:
    """Return the file of a device and shape; it need not exist."""
    slug = "".join(c if c.isalnum() else "_" for c in device_name)
    return user_folder() / f"{slug}-{shape.slug}.json"


@lru_cache(maxsize=256)
def read(path: Path) -> Configurations:
    """Read a file of configurations.

    Raises:
        ConfigError: it is not one, or of a version this release cannot read.
    """
    try:
        return Configurations.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ConfigError(
            f"{path} does not hold configurations of version {CONFIG_VERSION}: {error}. "
            "Delete it, and run modes-fx tune for a new one"
        ) from error


@lru_cache(maxsize=256)
def choose(target: str, shape: Shape, device_name: str = "") -> Configurations:
    """Return the configurations for a device: tuned for the shape, or else those that are shipped.

    Args:
        target: such as ``sm_90``.
        shape: what is computed.
        device_name: as torch tells it.
    """
    if device_name and (path := tuned_path(device_name, shape)).exists():
        tuned = read(path)
        if tuned.triton != (installed := version("triton")):
            warnings.warn(
                f"{path} was tuned with triton {tuned.triton}, and {installed} is installed: what "
                "was fast with one can be slow with another. Run modes-fx tune again",
                stacklevel=2,
            )
        return tuned
    family = "hip" if target.startswith("gfx") else "cuda"
    exact = SHIPPED / f"{target}.json"
    return read(exact if exact.exists() else SHIPPED / f"{family}.json")


_expected_skip = 0.0


def expect_skip_ratio(ratio: float) -> None:
    """Say what share of the pairs is going to be skipped; it guides block sizes, never results.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    global _expected_skip
    if not 0 <= ratio <= 1:
        raise ValueError(f"a skip ratio is between 0 and 1, got {ratio}")
    _expected_skip = ratio


def expected_rows(tokens: int, top_k: int, num_experts: int) -> float:
    """Return how many rows an expert is expected to have."""
    return tokens * top_k * (1 - _expected_skip) / num_experts


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as files spell it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
