"""What the unmodified model says at the answer tokens, which every measurement is compared with."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.calibration.data import Batch


class Difference(NamedTuple):
    """How far a changed model is from the full one, by sample in the order of the data (N samples).

    Attributes:
        kl: KL(full || changed) in nats, mean over all answer tokens.
        kl_by_sample: float64 ``[N]``, the same by sample.
        correct: bool ``[N]``, whether each answer token is the likeliest after those before it.
    """

    kl: float
    kl_by_sample: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Reference:
    """The full model's predictions of the answer tokens of some batches.

    Attributes:
        batches: the samples.
        logits: for each batch ``[A, V]`` on the CPU: its A answer tokens, in row-major order.
    """

    batches: Sequence[Batch]
    logits: Sequence[Tensor]

    @staticmethod
    def record(model: PreTrainedModel, batches: Sequence[Batch]) -> "Reference":
        """Run the unmodified model over the batches.

        Args:
            model: a transformers model, not attached.
            batches: samples numbered from 0 without gaps.

        Raises:
            ValueError: the samples are not numbered so, or a logit is NaN; names the sample.
        """
        numbers = sorted(sample for batch in batches for sample in batch.samples)
        if numbers != list(range(len(numbers))):
            raise ValueError(
                f"the samples of the batches must be numbered 0 to {len(numbers) - 1}, each once"
            )
        return Reference(batches, [answer_logits(model, batch).cpu() for batch in batches])

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(len(batch.samples) for batch in self.batches)

    def compare(self, model: PreTrainedModel) -> Difference:
        """Run a changed model over the same batches and compare.

        Raises:
            ValueError: a logit is NaN; names the sample.
        """
        kl = torch.zeros(self.samples, dtype=torch.float64)
        answers, wrong = torch.zeros(2, self.samples, dtype=torch.int64)
        for batch, full in zip(self.batches, self.logits, strict=True):
            logits = answer_logits(model, batch)
            rows, positions = batch.answer_mask.nonzero(as_tuple=True)
            sample = torch.tensor(batch.samples)[rows]
            kl.index_add_(0, sample, kl_divergence(full.to(logits.device), logits).cpu())
            answers.index_add_(0, sample, torch.ones_like(sample))
            missed = logits.argmax(dim=-1).cpu() != batch.inputs["input_ids"][rows, positions].cpu()
            wrong.index_add_(0, sample, missed.long())
        return Difference(float(kl.sum() / answers.sum()), kl / answers, wrong == 0)


def answer_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits ``[A, V]`` that predict the A answer tokens of a batch, in row-major order.

    Raises:
        ValueError: a logit is NaN; names the sample.
    """
    rows, positions = batch.answer_mask.nonzero(as_tuple=True)
    length = batch.answer_mask.shape[1]
    inputs = {name: value.to(model.device) for name, value in batch.inputs.items()}
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
