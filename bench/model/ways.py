"""The ways to run the model: transformers' own, ours, and transformers' with parts taken out.

What the parts cost is the difference to the whole. This needs no profiler, whose own cost is large
where operations are small, and sees what the compiler fused as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import modes_fx
from modes_fx import modes_backend
from modes_fx.attach import attached, set_thetas
from modes_fx.bench.layer.weights import Layout
from modes_fx.bench.model.build import share_weights
from modes_fx.bench.model.phases import DECODE, PHASES, Phase, Session
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import Modality

NOTHING = "modes_fx_bench_nothing"
OURS = "ours"
WITHOUT_EXPERTS, WITHOUT_BOTH = "without experts", "without experts and attention"

Prompt = dict[str, Tensor]
Compiler = Literal["inductor", "eager"]
"""``eager`` runs the captured graphs as they are: quick to start, for a first try and for tests."""


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Attributes:
        name: as the rows spell it.
        session: the model with its cache.
        phases: that it is timed in.
        layout: of the experts' weights.
        ours: whether pairs can be skipped.
    """

    name: str
    session: Session
    phases: Sequence[Phase] = PHASES
    layout: Layout = "default"
    ours: bool = False

    def set_thresholds(self, thresholds: Sequence[float]) -> None:
        """Skip what is below a threshold, the same for text and vision, one for each layer."""
        thetas = {}
        for path, threshold in zip(attached(self.session.model).layers, thresholds, strict=True):
            theta = keep_all_theta()
            theta[[Modality.TEXT, Modality.VISION]] = threshold
            thetas[path] = theta
        set_thetas(self.session.model, thetas)


class HFWay(NamedTuple):
    """One of transformers' ways.

    Attributes:
        experts: the implementation of its experts.
        compiled: whether the language model is.
        phases: that it is timed in.
    """

    experts: str
    compiled: bool
    phases: Sequence[Phase] = PHASES


HF_WAYS: Mapping[str, HFWay] = MappingProxyType(
    {
        "hf_eager": HFWay("eager", False),
        "hf_grouped": HFWay("grouped_mm", False),
        "hf_eager_compiled": HFWay("eager", True),
        "hf_grouped_compiled": HFWay("grouped_mm", True),
        # In prefill it would copy the weights of every pair.
        "hf_batched_compiled": HFWay("batched_mm", True, (DECODE,)),
    }
)
"""By name."""


def check_baselines(names: Sequence[str]) -> None:
    """Check that there are such ways.

    Raises:
        ValueError: there is none of a name, or none is compiled in one of the phases.
    """
    if unknown := [name for name in names if name not in HF_WAYS]:
        raise ValueError(
            f"there is no baseline {', '.join(unknown)}; there are {', '.join(HF_WAYS)}"
        )
    for phase in PHASES:
        if not any(HF_WAYS[name].compiled and phase in HF_WAYS[name].phases for name in names):
            raise ValueError(
                f"the bound needs a compiled way of transformers in {phase}: name one of the "
                "baselines that are compiled, such as hf_grouped_compiled"
            )


def hf_way(name: str, model: PreTrainedModel, prompt: Prompt, compiler: Compiler) -> Way:
    """Return one of transformers' ways; the weights stay shared with ``model``."""
    experts, compiled, phases = HF_WAYS[name]
    session = Session(share_weights(model), prompt)
    session.model.set_experts_implementation(experts)
    if compiled:
        _compile(session.model, backend=compiler)
    return Way(name, session, phases)


def without_parts(name: str, model: PreTrainedModel, prompt: Prompt, compiler: Compiler) -> Way:
    """Return the compiled model without what its experts, and perhaps its attention, compute.

    The router stays, its choice is read, and the residual stream keeps its scale.
    """
    session = Session(share_weights(model), prompt)
    ALL_EXPERTS_FUNCTIONS.register(NOTHING, _no_experts)
    session.model.set_experts_implementation(NOTHING)
    if name == WITHOUT_BOTH:
        for module in session.model.model.language_model.layers:
            module.self_attn = _NoAttention()
    _compile(session.model, backend=compiler)
    return Way(name, session)


def our_way(layout: Layout, model: PreTrainedModel, prompt: Prompt, compiler: Compiler) -> Way:
    """Return the model attached and compiled with our backend.

    Attaching makes torch forget what was compiled before, so ours come first.

    Args:
        layout: of the experts' weights; prepacking changes the weights of ``model`` in place.
        model: whose weights are shared, unless they are prepacked.
        prompt: what the session runs.
        compiler: of what the backend leaves.
    """
    prepack = layout == "prepacked"
    session = Session(model if prepack else share_weights(model), prompt)
    modes_fx.attach(session.model, None, prepack=prepack)
    _compile(session.model, backend=modes_backend, options={"strict": True, "compiler": compiler})
    return Way(OURS, session, layout=layout, ours=True)


def _compile(model: PreTrainedModel, **options: Any) -> None:
    # The vision tower breaks graphs: compiling it as well takes longer and tells nothing apart.
    model.model.language_model.compile(dynamic=False, **options)


def _no_experts(self: nn.Module, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return x * (weight.sum(-1, keepdim=True) + index.sum(-1, keepdim=True) * 1e-9).to(x.dtype)


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states, None
