"""Generate text with exported programs, without the code of the model they were made from."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from modes_fx import mean_ops as mean_ops  # registers ops that programs call
from modes_fx import ops as ops
from modes_fx.export.errors import ExportError

PREFILL, DECODE, INTERFACE = "prefill.pt2", "decode.pt2", "interface.json"


class Interface(BaseModel):
    """What prefill takes.

    Attributes:
        inputs: by name, in order.
        fixed: the shapes of those that cannot differ, such as the grids of the images.
        batch: the only batch size; None: any.
        position_axes: of ``position_ids`` ``[A, B, S]``; 0 where they are ``[B, S]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str]
    fixed: dict[str, list[int]]
    batch: int | None
    position_axes: int

    def save(self, folder: Path) -> None:
        """Write it beside the programs."""
        (folder / INTERFACE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it.

        Raises:
            ExportError: there is none, or it is malformed.
        """
        path = folder / INTERFACE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ExportError(f"{path} cannot be read: {error}") from error

    def arrange(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a prompt's inputs in order, with positions and a mask where they follow.

        Raises:
            ExportError: one is missing, not known, or of a shape that the program cannot take.
        """
        given = dict(inputs)
        if "input_ids" in given:
            mask = given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
            if not self.position_axes:
                given.setdefault("position_ids", text_positions(mask))
        if missing := [name for name in self.inputs if name not in given]:
            raise ExportError(f"prefill takes {', '.join(self.inputs)}: {missing[0]} is missing")
        if unknown := [name for name in given if name not in self.inputs]:
            raise ExportError(f"prefill takes {', '.join(self.inputs)}, not {unknown[0]}")
        for name, shape in self.fixed.items():
            if list(given[name].shape) != shape:
                raise ExportError(
                    f"{name} has shape {list(given[name].shape)}, prefill was exported for "
                    f"{shape}: export it again with as many images"
                )
        if self.batch is not None and given["input_ids"].shape[0] != self.batch:
            raise ExportError(
                f"prefill was exported for a batch of {self.batch}, not "
                f"{given['input_ids'].shape[0]}: export it again with two prompts"
            )
        return {name: given[name] for name in self.inputs}


class Runner:
    """Exported programs that generate text."""

    def __init__(self, folder: Path) -> None:
        """Load what ``modes_fx.export.components.Components.save`` wrote.

        Raises:
            ExportError: the folder does not hold it.
        """
        self.interface = Interface.load(folder)
        self._prefill = _load(folder / PREFILL)
        self._decode = _load(folder / DECODE)

    def generate(
        self, inputs: Mapping[str, Tensor], max_new_tokens: int, stop: Collection[int] = ()
    ) -> Tensor:
        """Continue prompts with the likeliest tokens.

        Args:
            inputs: a batch of prompts, padded on the left; see ``interface``.
            max_new_tokens: how many tokens at most.
            stop: tokens that end an answer; the first is repeated in answers that end earlier
                than others.

        Returns:
            int64 ``[B, N]``, the new tokens.

        Raises:
            ExportError: the inputs are not those that the programs take.
        """
        given = self.interface.arrange(inputs)
        mask, positions = given["attention_mask"], given["position_ids"]
        ends = torch.tensor(list(stop), dtype=torch.int64, device=mask.device)
        done = torch.zeros_like(mask[:, :1], dtype=torch.bool)
        tokens: list[Tensor] = []
        with torch.inference_mode():
            logits, cache = self._prefill(given, [])
            while True:
                token = logits[:, -1:].argmax(-1)
                if len(ends):
                    token = torch.where(done, ends[0], token)
                    done = done | torch.isin(token, ends)
                tokens.append(token)
                if len(tokens) == max_new_tokens or bool(done.all()):
                    return torch.cat(tokens, dim=1)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                positions = next_positions(positions)
                step = {"input_ids": token, "attention_mask": mask, "position_ids": positions}
                logits, cache = self._decode(step, cache)


def text_positions(mask: Tensor) -> Tensor:
    """Return ``[B, S]`` positions that count each prompt's own tokens from its mask ``[B, S]``."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


def next_positions(positions: Tensor) -> Tensor:
    """Return what follows positions ``[B, S]`` or ``[A, B, S]``: ``[B, 1]`` or ``[A, B, 1]``."""
    last = positions.amax(dim=-1, keepdim=True)
    if last.dim() == 3:
        last = last.amax(dim=0, keepdim=True).repeat(len(positions), 1, 1)
    return last + 1


def _load(path: Path) -> Any:
    try:
        return torch.export.load(path).module()
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path} cannot be loaded: {reason}") from error
