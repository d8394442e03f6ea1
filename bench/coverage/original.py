"""The unmodified model of a type: what everything else is compared with."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from transformers import PreTrainedModel

from modes_fx.bench.coverage.calls import converse, distance
from modes_fx.bench.coverage.inputs import Inputs, takes_images, tiny_inputs
from modes_fx.bench.coverage.record import Record
from modes_fx.bench.coverage.tiny import tiny_model


class Original:
    """The unmodified model, its inputs and what it answers.

    Attributes:
        model: the model.
        inputs: with an image where the model can be called with one.
        logits: of each call.
        static: whether its cache is a static one.
    """

    def __init__(self, model_type: str, record: Record) -> None:
        """Build and call the model.

        Raises:
            Exception: whatever the model's own code raises.
        """
        self.model: PreTrainedModel = tiny_model(model_type)
        self.inputs, self.logits = self._call(record)
        self.static = self._takes_static_cache()
        record.image, record.static_cache = self.inputs.has_image, self.static
        for record.original_fullgraph in (True, False):
            try:
                first, again = self._captures(fullgraph=record.original_fullgraph)
            except Exception:  # what Dynamo cannot capture whole is tried in parts, then given up
                continue
            record.original_graphs, record.original_graphs_again = first, sum(again)
            break

    def _call(self, record: Record) -> tuple[Inputs, list[Tensor]]:
        if takes_images(self.model):
            try:
                inputs = tiny_inputs(self.model, image=True)
                return inputs, self.converse(inputs)
            except Exception:  # the page shows why no image was given
                record.image_traceback = traceback.format_exc()
        inputs = tiny_inputs(self.model, image=False)
        return inputs, self.converse(inputs)

    def converse(self, inputs: Inputs, static: bool = False) -> list[Tensor]:
        """Make all calls eagerly; returns the logits of each."""
        logits = converse(self.model, lambda _, args: self.model(**args), inputs, static=static)
        if not all(bool(torch.isfinite(values).all()) for values in logits):
            raise FloatingPointError("the tiny model's logits are not finite")
        return logits

    def _takes_static_cache(self) -> bool:
        try:
            logits = self.converse(self.inputs, static=True)
        except Exception:  # models that want a cache of their own fail in their own ways
            return False
        pairs = zip(self.logits, logits, strict=True)
        return len(logits) > 1 and all(distance(a, b) < 1e-4 for a, b in pairs)

    def _captures(self, *, fullgraph: bool) -> tuple[list[int], list[int]]:
        """Return how many graphs each call has, and how many more when all is said again."""
        torch.compiler.reset()
        captured: list[GraphModule] = []

        def backend(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            captured.append(module)
            return module.forward

        compiled = torch.compile(self.model, backend=backend, fullgraph=fullgraph)
        counts: list[int] = []

        def call(_: int, arguments: dict[str, Any]) -> Any:
            before = len(captured)
            output = compiled(**arguments)
            counts.append(len(captured) - before)
            return output

        try:
            for _ in range(2):
                converse(self.model, call, self.inputs, static=self.static)
        finally:
            torch.compiler.reset()
        return counts[: len(self.logits)], counts[len(self.logits) :]
