"""Models that are spread over devices: accelerate's hooks, and how to capture graphs among them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its inputs: its own device, or the first one of a device map."""
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return model.device if device is None else torch.device(device)


@contextmanager
def without_transfers(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Take away the hooks inside of blocks that bring inputs to the device where they are already.

    They would break the graph in front of the experts. The hook of the layer around a block stays,
    and brings the layer's input to its device.

    Raises:
        ValueError: weights of a block are offloaded, so its hooks load them.
    """
    removed: list[tuple[nn.Module, AlignDevicesHook]] = []
    try:
        for block in blocks:
            for module in block.modules():
                hook = getattr(module, "_hf_hook", None)
                if hook is None:
                    continue
                if not isinstance(hook, AlignDevicesHook) or hook.offload:
                    raise ValueError(
                        "the experts are offloaded from the devices that compute them: give the "
                        "model devices that hold all of its experts (device_map), to calibrate it"
                    )
                remove_hook_from_module(module)
                removed.append((module, hook))
        yield
    finally:
        for module, hook in removed:
            add_hook_to_module(module, hook)
