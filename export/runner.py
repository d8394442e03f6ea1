"""Generate text with an artifact, without the code of the model it was made from."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modes_fx.export.calls import DECODE, PREFILL, step_inputs, text_positions
from modes_fx.export.errors import ExportError
from modes_fx.export.formats import find_format
from modes_fx.export.manifest import Manifest, Value


class Runner:
    """An artifact with the components ``prefill`` and ``decode``."""

    def __init__(self, folder: Path) -> None:
        """Load what ``modes_fx.export.export`` wrote.

        Raises:
            ExportError: the folder is no artifact, or has not both components.
        """
        manifest = Manifest.load(folder)
        if missing := [name for name in (PREFILL, DECODE) if name not in manifest.components]:
            raise ExportError(
                f"{folder} has no component {missing[0]}: export {PREFILL} and {DECODE} to generate"
            )
        self._takes = manifest.components[PREFILL]
        loader = find_format(manifest.format)
        self._prefill, self._decode = (loader.load(folder, name) for name in (PREFILL, DECODE))

    def generate(
        self, inputs: Mapping[str, Tensor], max_new_tokens: int, stop: Collection[int] = ()
    ) -> Tensor:
        """Continue prompts with the likeliest tokens.

        Args:
            inputs: a batch of prompts, padded on the left, as ``prefill`` takes them
                (``modes_fx.export.components.prompt_inputs``); the mask, and positions that count
                tokens, may be left out.
            max_new_tokens: how many tokens at most.
            stop: tokens that end an answer; the first is repeated in answers that end earlier
                than others.

        Returns:
            int64 ``[B, N]``, the new tokens.

        Raises:
            ExportError: the inputs are not those that the programs take.
        """
        given = arrange(self._takes.inputs, inputs)
        self._takes.check(given)
        ends = torch.tensor(list(stop), dtype=torch.int64, device=given["input_ids"].device)
        done = torch.zeros_like(given["input_ids"][:, :1], dtype=torch.bool)
        tokens: list[Tensor] = []
        logits, *cache = self._prefill(given)
        while True:
            token = logits[:, -1:].argmax(-1)
            if len(ends):
                token = torch.where(done, ends[0], token)
                done = done | torch.isin(token, ends)
            tokens.append(token)
            if len(tokens) == max_new_tokens or bool(done.all()):
                return torch.cat(tokens, dim=1)
            given = step_inputs(given, token, cache)
            logits, *cache = self._decode(given)


def arrange(takes: Sequence[Value], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a prompt's inputs in order, with positions and a mask where they follow.

    Args:
        takes: what ``prefill`` takes.
        inputs: by name.

    Raises:
        ExportError: one is missing, not known, or of a size that the program cannot take.
    """
    given, shapes = dict(inputs), {value.name: value.shape for value in takes}
    names = ", ".join(shapes)
    if "input_ids" in given:
        mask = given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
        if len(shapes["position_ids"]) == mask.dim():
            given.setdefault("position_ids", text_positions(mask))
    if missing := [name for name in shapes if name not in given]:
        raise ExportError(f"prefill takes {names}: {missing[0]} is missing")
    if unknown := [name for name in given if name not in shapes]:
        raise ExportError(f"prefill takes {names}, not {unknown[0]}")
    for name, shape in shapes.items():
        sizes = list(given[name].shape)
        fits = [
            isinstance(want, str) or want == size for want, size in zip(shape, sizes, strict=False)
        ]
        if len(sizes) != len(shape) or not all(fits):
            raise ExportError(
                f"{name} has shape {sizes}, and prefill was exported for "
                f"[{', '.join(map(str, shape))}]: export it again with inputs of such sizes"
            )
        if name.endswith("_grid_thw") and bool((given[name] != given[name][:1]).any()):
            raise ExportError(
                f"the images of a call have to be of one size, and {name} is "
                f"{given[name].tolist()}: resize them"
            )
    return {name: given[name] for name in shapes}
