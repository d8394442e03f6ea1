"""A tiny model, a policy with thresholds between its shares, and calls of different sizes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from modes_fx import SkipPolicy
from modes_fx.attach import find_expert_modules
from modes_fx.export.program import GatedProgram, exportable_inputs, gated_program
from modes_fx.hooks import keep_all_theta
from modes_fx.policy_means import Means
from modes_fx.vocabulary import Modality
from tests.oracle import codes_of, eager_oracle, middle_threshold
from tests.tiny import chat, left_padded, tiny_vlm

HALF = 0.5
Call = dict[str, Tensor]

TEXT = left_padded(chat(9), chat(6, seed=1))
MORE_TEXT = left_padded(chat(13, seed=2), chat(4, seed=3), chat(7, seed=4))
IMAGE = left_padded(chat(9, images=1), chat(6, images=1, seed=1))


@dataclass(frozen=True)
class Gated:
    """A model and what its logits are with about half of the pairs skipped.

    Attributes:
        model: not attached.
        policy: for it, with the targets 0 and HALF.
        threshold: of its target HALF.
    """

    model: nn.Module
    policy: SkipPolicy
    threshold: float

    def logits(self, call: Call, target: float) -> Tensor:
        """Return what transformers' own code computes, with the weights of skipped pairs 0."""
        theta = keep_all_theta()
        if target:
            theta[[Modality.TEXT, Modality.VISION]] = self.threshold
        thetas = dict.fromkeys(find_expert_modules(self.model), theta)
        with torch.no_grad(), eager_oracle(self.model, thetas, codes_of(call)):
            return self.model(**call).logits


@pytest.fixture(scope="session")
def gated() -> Gated:
    model = tiny_vlm().requires_grad_(False)
    threshold = middle_threshold(model, IMAGE, HALF)
    alpha = {path: {"text": 1.0, "vision": 1.0} for path in find_expert_modules(model)}
    tau = {0.0: {"text": 0.0}, HALF: {"text": threshold, "vision": threshold}}
    policy = SkipPolicy(alpha, tau, model_id="tiny")
    return Gated(model, policy, threshold)


@pytest.fixture(scope="session")
def compensating(gated) -> SkipPolicy:
    """The policy of ``gated``, with something to add for what is skipped at its target HALF."""
    generator = torch.Generator().manual_seed(0)
    tables = {path: torch.randn(2, 8, 32, generator=generator) for path in gated.policy.alpha}
    return SkipPolicy(
        gated.policy.alpha,
        gated.policy.tau,
        model_id="tiny",
        kept_mass_exponent=0.25,
        mean_strength={"text": 0.5, "vision": 1.0},
        means=Means({HALF: tables}),
    )


@pytest.fixture(scope="session")
def program(gated) -> GatedProgram:
    """The model exported for its target HALF, with texts."""
    inputs = exportable_inputs(gated.model, TEXT)
    return gated_program(gated.model, gated.policy, HALF, inputs)
