"""The eager oracle: the model's own experts, with the combine weights of skipped pairs set to 0.

It shares nothing with the rewrite: no graph, no op, no kernel. Experts behind transformers' public
registry run through an entry there, which masks the weights and calls the experts' own eager code.
Models outside the registry are masked by hooks where their Python code hands over the weights.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from modes_fx.bench.coverage.boundaries import Mask, hook_unregistered, is_registered
from modes_fx.bench.coverage.inputs import PATCHES
from modes_fx.vocabulary import Modality

IMPLEMENTATION = "skipping_oracle"

NEAR = 1e-5
"""A share this close to a threshold may fall on either side of it, by rounding alone."""


@dataclass
class Layer:
    """What the oracle saw and did in one MoE layer during one call.

    Attributes:
        thetas: the threshold of each modality code it skipped with.
        kept: kept pairs by modality code, and likewise below.
        pairs: all pairs.
    """

    thetas: dict[int, float] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)
    pairs: dict[int, int] = field(default_factory=dict)


class Oracle:
    """Runs a model eagerly, and skips pairs in some of its MoE layers.

    Thresholds are chosen as it goes: for each layer and modality in the middle of the widest gap
    between the shares near their median, so that rounding cannot move a share across.

    Attributes:
        layers: what happened in the last call, by the path of the module that owns the experts.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Prepare to run a model, which is left as it is between calls."""
        self.layers: dict[str, Layer] = {}
        self._model = model
        self._paths = {module: path for path, module in model.named_modules()}

    def __call__(self, codes: Tensor, skip_in: Callable[[str], bool], **arguments: Any) -> Any:
        """Call the model.

        Args:
            codes: ``[S]`` the modality code of each token.
            skip_in: whether to skip pairs in the layer of a path; elsewhere all are kept.
            arguments: of the model's forward.

        Returns:
            The model's output.

        Raises:
            ArithmeticError: the shares are too much alike to put a threshold between them.
        """
        self.layers = {}

        def mask_of(path: str) -> Mask:
            layer = self.layers.setdefault(path, Layer())
            skip = skip_in(path)
            return lambda weight: _mask(weight, layer, codes) if skip else weight

        with _masking(self._model, self._paths, mask_of), torch.no_grad():
            return self._model(**arguments)


def _mask(weight: Tensor, layer: Layer, codes: Tensor) -> Tensor:
    """Choose thresholds for one layer, and set the weights of its skipped pairs to 0."""
    share = weight.double()
    if weight.shape[1] > 1:
        share = (share / share.sum(-1, keepdim=True)).nan_to_num(0.0)
    masked = weight.clone()
    code_of = codes_of_tokens(codes, len(weight))
    for code in code_of.unique().tolist():
        rows = code_of == code
        of_code = share[rows]
        theta = choose_threshold(of_code[of_code > 0])
        kept = of_code >= theta
        masked[rows] = weight[rows].masked_fill(~kept, 0)
        layer.thetas[code] = theta
        layer.kept[code] = layer.kept.get(code, 0) + int(kept.sum())
        layer.pairs[code] = layer.pairs.get(code, 0) + kept.numel()
        if near := int(((of_code - theta).abs() < NEAR).sum()):
            raise ArithmeticError(f"{near} shares are too close to the threshold {theta} to tell")
    return masked


def codes_of_tokens(codes: Tensor, tokens: int) -> Tensor:
    """Return the codes of the tokens that reach a layer; their number tells which they are.

    Args:
        codes: ``[S]`` of the call.
        tokens: all S of them, as many as there are of one modality, or the patches of the image.

    Raises:
        ValueError: it is none of these.
    """
    if tokens == len(codes):
        return codes
    if tokens == PATCHES and (codes == Modality.VISION).any():
        return torch.full((tokens,), Modality.VISION.value)
    counts = {int(code): int((codes == code).sum()) for code in codes.unique()}
    fitting = [code for code, count in counts.items() if count == tokens or len(counts) == 1]
    if len(fitting) != 1:
        raise ValueError(f"{tokens} tokens reach the experts, but the call has {counts} by code")
    return torch.full((tokens,), fitting[0])


def choose_threshold(shares: Tensor) -> float:
    """Return a threshold that about half the shares are below, in the middle of a wide gap."""
    ordered = shares.flatten().sort().values
    if len(ordered) == 0:
        return -torch.inf
    if len(ordered) == 1:
        return 1.5 * float(ordered[0])
    gaps = ordered.diff()
    near_median = slice(len(gaps) // 3, max(len(gaps) - len(gaps) // 3, len(gaps) // 3 + 1))
    widest = near_median.start + int(gaps[near_median].argmax())
    return float((ordered[widest] + ordered[widest + 1]) / 2)


@contextmanager
def _masking(
    model: PreTrainedModel, paths: Mapping[nn.Module, str], mask_of: Callable[[str], Mask]
) -> Iterator[None]:
    """Within the context, the combine weights of every MoE layer of a model are masked."""

    def experts(module: nn.Module, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        # The registry's decorator stands around the experts' own code.
        result: Tensor = inspect.unwrap(type(module).forward)(
            module, x, index, mask_of(paths[module])(weight)
        )
        return result

    def hook(module: nn.Module, path: str) -> list[RemovableHandle]:
        return hook_unregistered(module, lambda weight: mask_of(path)(weight))

    handles = [handle for module, path in paths.items() for handle in hook(module, path)]
    registered: list[Any] = [module for module in paths if is_registered(module)]
    before = [module.config._experts_implementation for module in registered]
    ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION] = experts
    try:
        for module in registered:
            module.config._experts_implementation = IMPLEMENTATION
        yield
    finally:
        for module, implementation in zip(registered, before, strict=True):
            module.config._experts_implementation = implementation
        del ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION]
        for handle in handles:
            handle.remove()
