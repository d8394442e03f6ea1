"""What sizes an engine is built for: it is told the smallest, the usual and the largest."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modes_fx.export.calls import PAST, Inputs, image_sizes, images
from modes_fx.export.program import GatedProgram


@dataclass(frozen=True)
class SizeRange:
    """The sizes that one dynamic dimension may have.

    Attributes:
        smallest: of them.
        usual: the one to be fast at.
        largest: of them.
    """

    smallest: int
    usual: int
    largest: int


def size_ranges(
    gated: GatedProgram, inputs: Inputs, largest_batch: int, largest_length: int, *, fixed: bool
) -> dict[str, list[SizeRange | int]]:
    """Return what sizes an engine has to take, for each dimension of each input.

    Args:
        gated: the program.
        inputs: that it was exported with: the usual sizes.
        largest_batch: how many samples, or images.
        largest_length: how many tokens of a sample, in a prompt or a cache.
        fixed: whether images have the sizes of ``inputs``; what tells them is left out then.
    """
    nodes = {node.name: node for node in gated.program.graph.nodes}
    names = zip(inputs, gated.program.graph_signature.user_inputs, strict=True)
    shapes = {name: nodes[str(node)].meta["val"].shape for name, node in names}
    batch = str(shapes["input_ids"][0])
    # Lengths follow each other: a mask is one longer than the cache it is for.
    cache = [value.shape[-2] for name, value in inputs.items() if name.startswith(PAST)]
    length = cache[0] if cache else inputs["input_ids"].shape[1]
    told = image_sizes(inputs) if fixed else {}
    pixels = images(inputs)

    def range_of(size: Any, value: Tensor, name: str, axis: int) -> SizeRange | int:
        usual = value.shape[axis]
        if isinstance(size, int) or (told and name in pixels):
            return usual
        if str(size) == batch or name in pixels:
            return SizeRange(1, usual, max(usual, largest_batch))
        more = usual - length
        return SizeRange(1 + more, usual, max(usual, largest_length + more))

    return {
        name: [range_of(size, inputs[name], name, axis) for axis, size in enumerate(shape)]
        for name, shape in shapes.items()
        if name not in told
    }
