"""Whether skipping saves time in an exported program."""

import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from modes_fx.export.calls import THETA, Inputs
from modes_fx.export.formats import Loaded
from modes_fx.export.program import GatedProgram

ROUNDS = 7
TOKENS = 512
"""About as many are timed, where the batch is dynamic: few tokens are no measure of a prefill."""


def time_ratio(skipping: Loaded, keeping: Loaded, gated: GatedProgram, inputs: Inputs) -> float:
    """Return the processor time at the target over that with every expert kept, in turns.

    Args:
        skipping: a component.
        keeping: the same, but for the thresholds.
        gated: the program that both were made from, which says what is dynamic.
        inputs: of one call.
    """
    many = dict(_repeated(gated, inputs))
    ratios = []
    for _ in range(ROUNDS + 1):
        seconds = []
        for loaded in (skipping, keeping):
            started = time.process_time()
            loaded(many)
            seconds.append(time.process_time() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])


def _repeated(gated: GatedProgram, inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Repeat the samples of a call, where every input has a batch and it is dynamic."""
    placeholders = (node for node in gated.program.graph.nodes if node.op == "placeholder")
    shapes = {node.name: getattr(node.meta["val"], "shape", ()) for node in placeholders}
    # As text: two symbols count as equal where they are so in the call that was captured.
    sizes = {name: [str(size) for size in shapes[name]] for name in inputs if name != THETA}
    batch = sizes["input_ids"][0]
    repeats = max(1, TOKENS // inputs["input_ids"].numel())
    if batch.isdigit() or not all(batch in shape for shape in sizes.values()):
        repeats = 1
    for name, value in inputs.items():
        if name == THETA:
            yield name, value
            continue
        dim = sizes[name].index(batch) if repeats > 1 else 0
        yield name, torch.cat([value] * repeats, dim=dim)
