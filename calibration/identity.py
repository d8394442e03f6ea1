"""What a calibration's measurements belong to, so that a journal is never continued by another."""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modes_fx.calibration.data import Batch
from modes_fx.calibration.placement import input_device
from modes_fx.fingerprint import config_hash
from modes_fx.policy import SkipPolicy

PROBES = 64
"""So many values of every weight enter its digest: enough to tell two checkpoints apart."""


def fingerprint(
    model: PreTrainedModel,
    policy: SkipPolicy,
    data: str,
    samples: int,
    batches: int,
    compiler: str,
) -> dict[str, Any]:
    """Return what decides the measurements, by field.

    Args:
        model: the model, not attached.
        policy: says how pairs are compared with thresholds.
        data: the digest of the samples in their batches, in order.
        samples: how many there are.
        batches: likewise.
        compiler: see ``modes_fx.backend.BackendOptions``.
    """
    return {
        "model": config_hash(model.config),
        "weights": weights_digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": input_device(model).type,
        "data": data,
        "samples": samples,
        "batches": batches,
        "share": policy.share,
        "special_token_ids": list(policy.special_token_ids),
        "compiler": compiler,
        "versions": {name: version(name) for name in ("modes-fx", "torch", "transformers")},
    }


def weights_digest(model: PreTrainedModel) -> str:
    """Hash the name, shape, type and a few values of every weight; of offloaded ones no values."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta":
            flat = weight.detach().reshape(-1)
            probes = flat[:: max(1, flat.numel() // PROBES)][:PROBES]
            digest.update(_bytes(probes))
    return digest.hexdigest()


def batch_digest(batch: Batch) -> str:
    """Hash everything that a batch gives the model, and which of its tokens are answers."""
    digest = hashlib.sha256(f"{list(batch.samples)} {batch.held_back}".encode())
    tensors: Mapping[str, Tensor] = {**batch.inputs, "": batch.answer_mask}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
