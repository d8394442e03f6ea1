"""Our ops on a layer whose experts are int8, beside the same experts as they are."""

import copy

from torch import nn
from torch.nn.utils import parametrize

from modes_fx.bench.layer import ours
from modes_fx.bench.layer.weights import Layer, Layout, NotAvailableError, Runner
from modes_fx.quantise import quantise_experts

BYTES_OF_A_WEIGHT = 1


def prepare(layer: Layer, layout: Layout) -> Runner:
    """Return what calls the gate and the experts op on int8 copies of the weights.

    Raises:
        NotAvailableError: torchao is not installed, or the experts are of a form that cannot be
            quantised.
    """
    return ours.prepare(quantised(layer), layout)


def quantised(layer: Layer) -> Layer:
    """Return a layer of int8 experts; the given one stays as it is.

    Raises:
        NotAvailableError: see :func:`prepare`.
    """
    return Layer(layer.shape, layer.dtype, [_quantised(module) for module in layer.copies])


def dequantised(layer: Layer) -> Layer:
    """Return the first copy with the weights that its int8 form stands for, for the oracle."""
    stored, module = _quantised(layer.copies[0]), copy.copy(layer.copies[0])
    module._parameters = {
        name: nn.Parameter(getattr(stored, name).detach(), requires_grad=False)
        if parametrize.is_parametrized(stored, name)
        else weight
        for name, weight in module._parameters.items()
    }
    return Layer(layer.shape, layer.dtype, [module])


def _quantised(module: nn.Module) -> nn.Module:
    own = copy.deepcopy(module)
    try:
        quantise_experts(own, 8)
    except ImportError as reason:
        raise NotAvailableError(
            f"it quantises with torchao ({reason}): pip install 'modes-fx[quant]'"
        ) from reason
    except ValueError as reason:
        raise NotAvailableError(str(reason)) from reason
    return own
