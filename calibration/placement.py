"""Models that are spread over devices: accelerate's hooks, and how to capture graphs among them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from torch import nn
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its inputs: its own device, or the first one of a device map."""
    hook = getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return model.device if device is None else torch.device(device)


def require_experts_in_place(model: PreTrainedModel, layers: Collection[str]) -> None:
    """Check that the modules around experts keep their weights where they compute.

    Offloaded weights are brought in by a hook at every call and are no data in between, so the
    experts among them can neither be captured in a graph nor be given thresholds.

    Args:
        model: not attached.
        layers: the paths of its modules that own experts.

    Raises:
        ValueError: weights are offloaded; says of how many layers and what to do.
    """
    around = {path: model.get_submodule(path.rpartition(".")[0]) for path in layers}
    offloaded = [path for path, block in around.items() if _offloads(block)]
    if offloaded:
        raise ValueError(
            f"the experts of {len(offloaded)} of {len(around)} layers are offloaded (the first: "
            f"{offloaded[0]}): accelerate keeps their weights elsewhere and brings them in at each "
            "call, and such weights cannot be calibrated. Load the model where all of its experts "
            "fit: on more devices, in a smaller dtype (dtype=torch.bfloat16), or on the host alone "
            "(device_map={'': 'cpu'}), which is slow but gives the same policy up to rounding"
        )


@contextmanager
def without_transfers(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Take away the hooks inside of blocks that bring inputs to the device where they are already.

    They would break the graph in front of the experts. The hook of the layer around a block stays,
    and brings the layer's input to its device.

    Raises:
        ValueError: there is a hook that does more.
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
                        f"a {type(module).__name__} with experts has a {type(hook).__name__} of "
                        "accelerate that does more than to move its input: take it away to "
                        "calibrate the model (accelerate.hooks.remove_hook_from_module)"
                    )
                remove_hook_from_module(module)
                removed.append((module, hook))
        yield
    finally:
        for module, hook in removed:
            add_hook_to_module(module, hook)


def _offloads(block: nn.Module) -> bool:
    return any(
        isinstance(hook, AlignDevicesHook) and hook.offload
        for module in block.modules()
        for hook in _hooks(module)
    )


def _hooks(module: nn.Module) -> Sequence[ModelHook]:
    hook = getattr(module, "_hf_hook", None)
    if isinstance(hook, SequentialHook):
        return hook.hooks
    return [] if hook is None else [hook]
