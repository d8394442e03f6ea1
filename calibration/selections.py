"""Simpler ways to choose the pairs to keep, which no threshold on the share expresses.

They change the router's choice in front of the experts of the unmodified model: skipped pairs get
weight 0 and the id that its eager experts pass over.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from modes_fx import ops as ops  # registers count_pairs
from modes_fx.attach import find_expert_modules
from modes_fx.calibration.data import Batch
from modes_fx.calibration.evaluator import Evaluator, Outcome
from modes_fx.calibration.measurement import Measurement
from modes_fx.calibration.pairs import hooked_pairs
from modes_fx.calibration.reference import answer_logits
from modes_fx.calibration.survey import number_of_experts
from modes_fx.vocabulary import Modality


@dataclass(frozen=True)
class Pairs:
    """What a layer's router chose in one call.

    Attributes:
        path: of the module that owns the experts.
        x: ``[T, H]`` their input.
        index: ``[T, K]`` the experts chosen.
        weight: ``[T, K]`` combine weights.
        tokens: bool ``[T]``, the tokens that are not padding.
        generator: the source of chance, on the CPU.
    """

    path: str
    x: Tensor
    index: Tensor
    weight: Tensor
    tokens: Tensor
    generator: torch.Generator


class Selection(Protocol):
    """Chooses the pairs to keep; a frozen dataclass of JSON-ready fields."""

    @property
    def renormalise(self) -> bool:
        """Whether the kept weights are scaled to the sum they had before."""

    def keep(self, pairs: Pairs) -> Tensor:
        """Return bool ``[T, K]``, the pairs to keep."""


@dataclass(frozen=True)
class ReducedTopK:
    """Keep the ``k`` pairs of largest weight of every token.

    Attributes:
        k: where it is not whole, so many tokens keep one more that it is met on average.
        renormalise: scale the kept weights to the sum they had before.
    """

    k: float
    renormalise: bool = False

    def keep(self, pairs: Pairs) -> Tensor:
        """See :class:`Selection`."""
        kept = torch.full((len(pairs.weight),), int(self.k))
        extra = round((self.k - int(self.k)) * int(pairs.tokens.sum()))
        kept[_draw(pairs.tokens, extra, pairs.generator)] += 1
        return _rank(pairs.weight) < kept.to(pairs.weight.device)[:, None]


@dataclass(frozen=True)
class RandomSkipping:
    """Skip pairs whatever their weight: in each call and layer the given part of them, exactly.

    Attributes:
        skip_ratio: the part to skip.
        renormalise: scale the kept weights to the sum they had before.
    """

    skip_ratio: float
    renormalise: bool = False

    def keep(self, pairs: Pairs) -> Tensor:
        """See :class:`Selection`."""
        weight = pairs.weight
        candidates = pairs.tokens[:, None].expand(weight.shape)
        skipped = round(self.skip_ratio * int(candidates.sum()))
        kept = torch.ones(weight.shape, dtype=torch.bool)
        kept.view(-1)[_draw(candidates.flatten(), skipped, pairs.generator)] = False
        return kept.to(weight.device)


@dataclass(frozen=True)
class RelativeRule:
    """Keep the pairs whose weight is at least a part of their token's largest.

    Attributes:
        ratio: that part, by layer path; or one for all layers.
        protected: the part of each call's tokens that keep all: those of the largest L1 norm.
        similarity: by layer path, how much the experts of a token are alike, ``[E, E]`` nested
            lists; a pair's part is scaled by its expert's likeness to the token's first.
        renormalise: scale the kept weights to the sum they had before.
    """

    ratio: Mapping[str, float] | float
    protected: float = 0.0
    similarity: Mapping[str, list[list[float]]] | None = None
    renormalise: bool = False

    def keep(self, pairs: Pairs) -> Tensor:
        """See :class:`Selection`."""
        weight = pairs.weight.float()
        largest, first = weight.max(dim=-1, keepdim=True)
        ratio = self.ratio if isinstance(self.ratio, float) else self.ratio[pairs.path]
        least = ratio * largest
        if self.similarity is not None:
            alike = torch.tensor(self.similarity[pairs.path], device=weight.device)
            least = least * alike[pairs.index.gather(1, first), pairs.index]
        kept = (weight >= least) | (_rank(weight) == 0)
        if self.protected:
            kept = kept | self._important(pairs)[:, None]
        return kept

    def _important(self, pairs: Pairs) -> Tensor:
        norm = pairs.x.float().abs().sum(-1).masked_fill(~pairs.tokens, -torch.inf)
        count = round(self.protected * int(pairs.tokens.sum()))
        important = torch.zeros(len(norm), dtype=torch.bool, device=norm.device)
        important[norm.topk(count).indices] = True
        return important


def measure_selection(evaluator: Evaluator, selection: Selection, *, seed: int = 0) -> Measurement:
    """Run the samples with a selection in every layer.

    Args:
        evaluator: whose samples and model are used; the model is detached for it.
        selection: the pairs to keep.
        seed: where the selection leaves something to chance.
    """
    description = {"selection": type(selection).__name__, **_fields(selection), "seed": seed}
    with evaluator.unmodified() as model:
        layers = find_expert_modules(model)

        def run(batch: Batch) -> Outcome:
            counts = {path: torch.zeros(len(Modality), 2, dtype=torch.int64) for path in layers}
            generator = torch.Generator().manual_seed(seed + batch.samples[0])

            def select(
                path: str, codes: Tensor, x: Tensor, index: Tensor, weight: Tensor
            ) -> tuple[Tensor, Tensor]:
                experts = number_of_experts(layers[path])
                tokens = codes != Modality.PADDING
                kept = selection.keep(Pairs(path, x, index, weight, tokens, generator))
                index = index.masked_fill(~kept, experts)
                torch.ops.modes_fx.count_pairs(counts[path], index.cpu(), codes.cpu(), experts)
                kept_weight = weight.masked_fill(~kept, 0)
                if selection.renormalise:
                    kept_sum = kept_weight.sum(-1, keepdim=True)
                    scale = weight.sum(-1, keepdim=True) / kept_sum
                    kept_weight = kept_weight * scale.masked_fill(kept_sum == 0, 0)
                return index, kept_weight

            with hooked_pairs(model, select, layers=layers):
                logits = answer_logits(model, batch)
            return Outcome(logits, counts, layers=len(layers))

        implementations = model.get_experts_implementation()
        model.set_experts_implementation("eager")
        try:
            return evaluator.measure_as(description, run)
        finally:
            model.set_experts_implementation(implementations)


def expert_similarity(evaluator: Evaluator) -> dict[str, list[list[float]]]:
    """Return how much every two experts are alike, by layer path: 1 same weights, 0 opposite ones.

    Halfway between the cosine of their weights and 1.

    Raises:
        ValueError: the experts' weights are not stacked.
    """
    found = {}
    for path, layer in find_expert_modules(evaluator.model).items():
        stacks = [p.detach().float().flatten(1) for p in layer.parameters() if p.dim() == 3]
        if not stacks:
            raise ValueError(f"the weights of the experts of {path} are not stacked")
        flat = torch.cat(stacks, dim=1)
        flat = flat / flat.norm(dim=1, keepdim=True)
        found[path] = ((1 + flat @ flat.T) / 2).cpu().tolist()
    return found


def _fields(selection: Selection) -> dict[str, Any]:
    return asdict(selection)  # type: ignore[call-overload]  # the protocol asks for a dataclass


def _rank(weight: Tensor) -> Tensor:
    return weight.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def _draw(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return so many of the places where ``candidates`` is true."""
    places = candidates.nonzero()[:, 0].cpu()
    return places[torch.randperm(len(places), generator=generator)[:count]]
