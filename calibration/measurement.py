"""What a measurement found: how far the answers moved and how many pairs were skipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modes_fx.vocabulary import CALIBRATED, Modality, ModalityName


@dataclass(frozen=True)
class Difference:
    """How far a changed model is from the full one, by sample (N samples, in the data's order).

    Attributes:
        samples: the place of each in the data, ascending.
        tokens: int64 ``[N]``, answer tokens.
        kl_sums: float64 ``[N]``, KL(full || changed) in nats, summed over its answer tokens.
        squared_errors: float64 ``[N]``, squared differences of the logits, averaged over the
            vocabulary and summed over its answer tokens.
        agreeing: int64 ``[N]``, answer tokens at which both models hold the same token likeliest.
        missed: int64 ``[N]``, answer tokens that are not the changed model's likeliest.
    """

    samples: Sequence[int]
    tokens: Tensor
    kl_sums: Tensor
    squared_errors: Tensor
    agreeing: Tensor
    missed: Tensor

    @property
    def kl(self) -> float:
        """KL(full || changed) in nats, mean over all answer tokens."""
        return self._mean(self.kl_sums)

    @property
    def mse(self) -> float:
        """The squared difference of the logits, mean over answer tokens and vocabulary."""
        return self._mean(self.squared_errors)

    @property
    def agreement(self) -> float:
        """The share of answer tokens at which both models hold the same token likeliest."""
        return self._mean(self.agreeing)

    @property
    def kl_by_sample(self) -> Tensor:
        """float64 ``[N]``, KL in nats, mean over the sample's answer tokens."""
        return self.kl_sums / self.tokens

    @property
    def correct(self) -> Tensor:
        """Bool ``[N]``, whether each answer token is the likeliest after those before it."""
        return self.missed == 0

    def _mean(self, sums: Tensor) -> float:
        return float(sums.sum() / self.tokens.sum())


PER_SAMPLE = ("tokens", "kl_sums", "squared_errors", "agreeing", "missed")
_FLOATS = ("kl_sums", "squared_errors")


@dataclass(frozen=True)
class Measurement:
    """What one choice of the kept pairs gave on the calibration data.

    Attributes:
        difference: from the full model.
        counts: by layer path int64 ``[M, 2]``: all pairs and kept pairs of each modality code.
        layer_forwards: how many samples ran through how many MoE layers for it, multiplied.
    """

    difference: Difference
    counts: Mapping[str, Tensor]
    layer_forwards: int = field(default=0, compare=False)

    @property
    def kl(self) -> float:
        """KL(full || this) in nats, mean over answer tokens."""
        return self.difference.kl

    @property
    def mse(self) -> float:
        """The squared difference of the logits, mean over answer tokens and vocabulary."""
        return self.difference.mse

    @property
    def agreement(self) -> float:
        """The share of answer tokens at which both models hold the same token likeliest."""
        return self.difference.agreement

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
        return _by_modality(self._total)

    @property
    def skip_ratio_by_layer(self) -> dict[str, float]:
        """The same within each layer."""
        return {path: _skip_ratio(_without_padding(count)) for path, count in self.counts.items()}

    @property
    def skip_ratio_by_layer_and_modality(self) -> dict[str, dict[ModalityName, float]]:
        """The same within each modality of each layer."""
        return {path: _by_modality(count) for path, count in self.counts.items()}

    @property
    def _total(self) -> Tensor:
        return _without_padding(torch.stack([count.cpu() for count in self.counts.values()]).sum(0))

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON-ready data; floats survive the way there and back."""
        difference = self.difference
        return {
            "samples": list(difference.samples),
            **{name: getattr(difference, name).tolist() for name in PER_SAMPLE},
            "counts": {path: count.tolist() for path, count in self.counts.items()},
            "layer_forwards": self.layer_forwards,
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "Measurement":
        """Read what :meth:`to_dict` returned."""
        per_sample = {
            name: torch.tensor(
                fields[name], dtype=torch.float64 if name in _FLOATS else torch.int64
            )
            for name in PER_SAMPLE
        }
        counts = {path: torch.tensor(count) for path, count in fields["counts"].items()}
        difference = Difference(samples=tuple(fields["samples"]), **per_sample)
        return Measurement(difference, counts, fields["layer_forwards"])


QUANTUM = 2.0**-30
"""Sums of multiples of this are exact in float64 up to 2**23, in whatever order."""


def quantised(values: Tensor) -> Tensor:
    """Round float64 values to multiples of ``QUANTUM``, so that the order of sums is no matter."""
    return (values / QUANTUM).round() * QUANTUM


def combine(measurements: Sequence[Measurement]) -> Measurement:
    """Put measurements of one choice on different samples together, in the order of the data."""
    counts = {
        path: torch.stack([measurement.counts[path].cpu() for measurement in measurements]).sum(0)
        for path in measurements[0].counts
    }
    return Measurement(
        combine_differences([measurement.difference for measurement in measurements]),
        counts,
        sum(measurement.layer_forwards for measurement in measurements),
    )


def combine_differences(differences: Sequence[Difference]) -> Difference:
    """Put differences of different samples together, in the order of the data."""
    samples = [sample for difference in differences for sample in difference.samples]
    order = torch.tensor(samples, dtype=torch.int64).argsort()
    per_sample = {
        name: torch.cat([getattr(difference, name) for difference in differences])[order]
        for name in PER_SAMPLE
    }
    return Difference(samples=tuple(sorted(samples)), **per_sample)


def _by_modality(count: Tensor) -> dict[ModalityName, float]:
    return {
        name: _skip_ratio(count[code : code + 1])
        for name, code in CALIBRATED.items()
        if count[code, 0] > 0
    }


def _without_padding(count: Tensor) -> Tensor:
    return count[torch.arange(len(count)) != Modality.PADDING]


def _skip_ratio(count: Tensor) -> float:
    pairs, kept = count.sum(0).tolist()
    return 1 - kept / pairs if pairs else 0.0
