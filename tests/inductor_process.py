"""Run as a process: compile a small model with inductor, print what it computed and the cache hits.

Arguments: a list, as JSON, of policies' options; the last line printed is a JSON list with an
entry for each: the outputs by target, and whether inductor's cache held the graph.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import PretrainedConfig

import modes_fx
from modes_fx import SkipPolicy
from tests.tiny import GroupedExperts, routed_tokens

TARGETS = {0.0: {"text": 0.0}, 0.5: {"text": 0.5}}


class Model(nn.Module):
    """Experts, called as a model is."""

    config = PretrainedConfig()

    def __init__(self) -> None:
        super().__init__()
        self.experts = GroupedExperts()

    def forward(self, input_ids: Tensor, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return self.experts(x, index, weight)


def call(tokens: int = 6) -> tuple[Tensor, ...]:
    return torch.zeros(1, tokens, dtype=torch.long), *routed_tokens(tokens)


def compiled_outputs(options: dict[str, Any]) -> dict[str, Any]:
    counters.clear()
    policy = SkipPolicy({"experts": {"text": 1.0}}, TARGETS, **options)
    model = modes_fx.attach(Model().eval(), policy)
    compiled = torch.compile(model, backend="modes_fx", options={"strict": True})
    outputs = {}
    for target in TARGETS:
        modes_fx.set_target(model, target)
        outputs[str(target)] = compiled(*call()).tolist()
    modes_fx.detach(model)
    return {
        "outputs": outputs,
        "graphs": counters["stats"]["unique_graphs"],
        "hits": counters["inductor"]["fxgraph_cache_hit"],
        "misses": counters["inductor"]["fxgraph_cache_miss"],
    }


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps([compiled_outputs(options) for options in json.loads(sys.argv[1])]))
