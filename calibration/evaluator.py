"""Measure what given thresholds cost and save, with the same rewritten op as inference."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from transformers import PreTrainedModel

from modes_fx.attach import (
    attach,
    attached,
    detach,
    find_expert_modules,
    pair_counts,
    set_thetas,
)
from modes_fx.backend import modes_backend
from modes_fx.calibration.reference import Difference, Reference
from modes_fx.errors import MatchError
from modes_fx.hooks import keep_all_theta
from modes_fx.policy import SkipPolicy
from modes_fx.vocabulary import CALIBRATED, Modality, ModalityName


@dataclass(frozen=True)
class Measurement:
    """What one choice of the kept pairs gave on the calibration data.

    Attributes:
        difference: from the full model: KL and correct answers.
        counts: by layer path int64 ``[M, 2]``: all pairs and kept pairs of each modality code.
    """

    difference: Difference
    counts: Mapping[str, Tensor]

    @property
    def kl(self) -> float:
        """KL(full || this) in nats, mean over answer tokens."""
        return self.difference.kl

    @property
    def accuracy(self) -> float:
        """The share of samples whose answer tokens are all the likeliest ones."""
        return float(self.difference.correct.double().mean())

    @property
    def skip_ratio(self) -> float:
        """Skipped pairs over pairs of non-padding tokens."""
        return _skip_ratio(self._total)

    @property
    def skip_ratio_by_modality(self) -> dict[ModalityName, float]:
        """The same within each modality that has tokens."""
        total = self._total
        return {
            name: _skip_ratio(total[code : code + 1])
            for name, code in CALIBRATED.items()
            if total[code, 0] > 0
        }

    @property
    def skip_ratio_by_layer(self) -> dict[str, float]:
        """The same within each layer."""
        return {path: _skip_ratio(_without_padding(count)) for path, count in self.counts.items()}

    @property
    def _total(self) -> Tensor:
        return _without_padding(torch.stack([count.cpu() for count in self.counts.values()]).sum(0))


class Evaluator:
    """A model attached and compiled for measuring, for as long as the ``with`` block lasts.

    Only the modules around the experts are compiled. The op is the same as in a model compiled
    whole, but capturing the rest, and again for every number of images, would take longer than
    all the measuring.

    Attributes:
        model: the model; unchanged again after the block.
        reference: the samples, and what the full model says to them.
        policy: what says how pairs are compared with thresholds (share, special tokens).
        passes: how often the samples went through the model so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: Reference,
        policy: SkipPolicy | None = None,
        *,
        compiler: str = "eager",
    ) -> None:
        """Remember what to measure; nothing is changed yet.

        Args:
            model: a transformers model that is not attached.
            reference: recorded from the same model.
            policy: thresholds start as its smallest target gives them; by default keep all.
            compiler: see ``modes_fx.backend.BackendOptions``.
        """
        self.model = model
        self.reference = reference
        self.policy = policy or keep_all_policy(model)
        self.passes = 0
        self._compiler = compiler
        self._undo = ExitStack()

    @property
    def layers(self) -> list[str]:
        """The paths of the modules that own experts."""
        return list(find_expert_modules(self.model))

    def __enter__(self) -> Self:
        """Attach the model and compile its MoE blocks."""
        with ExitStack() as undo:
            most = max(batch.answer_mask.numel() for batch in self.reference.batches)
            attach(self.model, self.policy, count_pairs=True, max_tokens=most)
            undo.callback(detach, self.model)
            options = {"compiler": self._compiler, "strict": True}
            for block in _blocks(self.model):
                undo.callback(setattr, block, "_compiled_call_impl", block._compiled_call_impl)
                block.compile(backend=modes_backend, options=options)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the model as it was."""
        self._undo.close()

    def measure(self, thetas: Mapping[str, Tensor]) -> Measurement:
        """Run the samples once with these thresholds.

        Args:
            thetas: ``{layer path: [M] float32 by modality code}``; other layers keep every pair.

        Returns:
            The same for the same thresholds.

        Raises:
            MatchError: an MoE layer could not be rewritten.
            ValueError: an unknown layer, or NaN logits.
        """
        set_thetas(self.model, {**dict.fromkeys(self.layers, keep_all_theta()), **thetas})
        pair_counts(self.model, reset=True)
        try:
            difference = self.reference.compare(self.model)
        except BackendCompilerFailed as error:
            raise MatchError(
                f"calibration cannot run this model: {error.inner_exception}"
            ) from None
        self.passes += 1
        counts = {path: count.cpu() for path, count in pair_counts(self.model).items()}
        if uncounted := [path for path, count in counts.items() if not count.any()]:
            raise MatchError(
                f"{len(uncounted)} of {len(counts)} MoE layers computed no pair (the first: "
                f"{uncounted[0]}): nothing is known about skipping there"
            )
        return Measurement(difference, counts)


def keep_all_policy(model: PreTrainedModel) -> SkipPolicy:
    """Return a policy for a model that keeps every pair of every token."""
    return SkipPolicy(alpha={path: {} for path in find_expert_modules(model)}, tau={0.0: {}})


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The modules to compile: loops by themselves, others with the router in front of them."""
    attachment = attached(model)
    paths = {p if p in attachment.loops else p.rpartition(".")[0] for p in attachment.layers}
    return [model.get_submodule(path) for path in sorted(paths)]


def _without_padding(count: Tensor) -> Tensor:
    return count[torch.arange(len(count)) != Modality.PADDING]


def _skip_ratio(count: Tensor) -> float:
    pairs, kept = count.sum(0).tolist()
    return 1 - kept / pairs if pairs else 0.0
