"""What the unmodified model says at the answer tokens, which every measurement is compared with."""

import inspect
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.calibration.data import Batch
from modes_fx.calibration.measurement import Difference, combine_differences
from modes_fx.calibration.placement import input_device
from modes_fx.calibration.processes import Processes
from modes_fx.calibration.request import HALVES, Part
from modes_fx.calibration.store import TensorStore

Layout = Sequence[tuple[Sequence[int], bool]]

ROWS = 64
"""So many answer tokens are compared at once: in float64 a row of a large vocabulary is a MB."""


class Reference:
    """The full model's predictions of the answer tokens of some batches.

    Attributes:
        batches: the samples, numbered from 0 without gaps.
        layout: the samples of each batch, and whether they are held back.
        samples: how many there are.
        store: holds the predictions.
    """

    def __init__(self, batches: Sequence[Batch], store: TensorStore | None = None) -> None:
        """Take batches whose predictions are still to be recorded.

        Raises:
            ValueError: the samples are not numbered from 0 without gaps.
        """
        self.layout: Layout = getattr(batches, "layout", None) or [
            (tuple(batch.samples), batch.held_back) for batch in batches
        ]
        numbers = sorted(sample for samples, _ in self.layout for sample in samples)
        if numbers != list(range(len(numbers))):
            raise ValueError(
                f"the samples of the batches must be numbered 0 to {len(numbers) - 1}, each once"
            )
        self.batches = batches
        self.store = store or TensorStore()
        self.samples = len(numbers)

    @staticmethod
    def record(model: PreTrainedModel, batches: Sequence[Batch]) -> "Reference":
        """Run the unmodified model over batches.

        Args:
            model: a transformers model, not attached.
            batches: samples numbered from 0 without gaps.

        Raises:
            ValueError: the samples are not numbered so, or a logit is NaN; names the sample.
        """
        reference = Reference(batches)
        reference.record_at(model, range(len(batches)))
        return reference

    def missing(self, places: Iterable[int]) -> list[int]:
        """Return which batches, by place, are not recorded yet."""
        return [place for place in places if _name(place) not in self.store]

    def record_at(self, model: PreTrainedModel, places: Iterable[int]) -> None:
        """Run the unmodified model over the batches at some places.

        Raises:
            ValueError: a logit is NaN; names the sample.
        """
        for place in places:
            logits = answer_logits(model, self.batches[place]).cpu()
            self.store.put(_name(place), {"logits": logits})

    def logits(self, place: int) -> Tensor:
        """Return what was recorded of a batch, ``[A, V]``: its A answer tokens, row-major."""
        return self.store[_name(place)]["logits"]

    def difference(self, place: int, logits: Tensor) -> Difference:
        """Compare a changed model's logits of a batch, as :func:`answer_logits` returns them."""
        batch, full = self.batches[place], self.logits(place)
        rows, positions = batch.answer_mask.nonzero(as_tuple=True)
        parts = [
            _compare(some.to(logits.device), other)
            for some, other in zip(full.split(ROWS), logits.split(ROWS), strict=True)
        ]
        kl, squared_error = (torch.cat(values) for values in zip(*parts, strict=True))
        likeliest = logits.argmax(dim=-1).cpu()

        def by_sample(values: Tensor) -> Tensor:
            sums = torch.zeros(len(batch.samples), dtype=values.dtype)
            return sums.index_add_(0, rows, values.cpu())[order]

        order = torch.tensor(batch.samples).argsort()
        return Difference(
            samples=tuple(sorted(batch.samples)),
            tokens=by_sample(torch.ones_like(rows)),
            kl_sums=by_sample(kl),
            squared_errors=by_sample(squared_error),
            agreeing=by_sample((full.argmax(dim=-1) == likeliest).long()),
            missed=by_sample(
                (batch.inputs["input_ids"][rows, positions].cpu() != likeliest).long()
            ),
        )

    def compare(self, model: PreTrainedModel) -> Difference:
        """Run a changed model over all batches and compare.

        Raises:
            ValueError: a logit is NaN; names the sample.
        """
        return combine_differences(
            [
                self.difference(place, answer_logits(model, batch))
                for place, batch in enumerate(self.batches)
            ]
        )


def _compare(full: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """KL and mean squared difference of each row of two logits ``[A, V]``, float64 ``[A]``."""
    difference = torch.where(full == changed, 0.0, full.double() - changed.double())
    return kl_divergence(full, changed), difference.square().mean(-1)


def _name(place: int) -> str:
    return f"logits-{place:05d}"


def places_of(layout: Layout, part: Part) -> list[int]:
    """Return the places of the batches of a part of the samples."""
    return [
        place
        for place, (_, held_back) in enumerate(layout)
        if part == "all" or held_back == (part == "held_back")
    ]


def own_places(layout: Layout, processes: Processes, part: Part = "all") -> list[int]:
    """Return the places of the batches of a part that this process runs."""
    if part == "all":
        return sorted(p for half in HALVES for p in own_places(layout, processes, half))
    places = places_of(layout, part)
    return [places[k] for k in processes.share_of(len(places))]


def answer_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits ``[A, V]`` that predict the A answer tokens of a batch, in row-major order.

    Raises:
        ValueError: a logit is NaN; names the sample.
    """
    rows, positions = batch.answer_mask.nonzero(as_tuple=True)
    length = batch.answer_mask.shape[1]
    device = input_device(model)
    inputs = {
        name: value.to(device, model.dtype if value.is_floating_point() else None)
        for name, value in batch.inputs.items()
    }
    takes_part = "logits_to_keep" in inspect.signature(model.forward).parameters
    part = {"logits_to_keep": int(length - positions.min() + 1)} if takes_part else {}
    with torch.no_grad():
        logits = model(**inputs, **part).logits
    first = length - logits.shape[1]
    answers = logits[rows.to(logits.device), (positions - 1 - first).to(logits.device)]
    if (bad := answers.isnan().any(dim=-1)).any():
        sample = batch.samples[int(rows[bad.nonzero()[0, 0]])]
        raise ValueError(f"the model's logits for sample {sample} are NaN: check it and the dtype")
    return answers


def kl_divergence(full: Tensor, changed: Tensor) -> Tensor:
    """Return KL(full || changed) in nats of each row of two logits ``[A, V]``, float64 ``[A]``.

    In float64, because the KL of a harmless change is smaller than float32 rounds probabilities.
    """
    p, q = full.double().log_softmax(-1), changed.double().log_softmax(-1)
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)
