"""The first pass: the unmodified model's answers, routing shares and sizes, all in one run.

It goes over the samples in chunks. Of the current chunk it also remembers what each layer put out,
so that alpha need not run the layers in front of the one that it removes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modes_fx.attach import find_expert_modules
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.pairs import Chosen, Shares, recorded_experts, recorded_shares
from modes_fx.calibration.prefix import Prefix, Stack, recording
from modes_fx.calibration.reference import answer_logits
from modes_fx.vocabulary import CALIBRATED

CHUNK = 8
"""Batches whose layers' outputs are remembered at the same time."""


@dataclass
class Seen:
    """What this process saw of its batches of a chunk, by place.

    Attributes:
        shares: as ``recorded_shares`` collects them.
        experts: as ``recorded_experts`` does.
        prefixes: empty where there is no stack to resume in.
        sizes: H of each layer's experts, by path.
    """

    shares: dict[int, Shares] = field(default_factory=dict)
    experts: dict[int, Chosen] = field(default_factory=dict)
    prefixes: dict[int, Prefix] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class Survey:
    """Runs the first pass, chunk by chunk; the same chunk asked for again is not run again.

    Attributes:
        evaluator: whose samples and model these are.
        stack: where alpha will resume; None: nothing is remembered.
    """

    def __init__(self, evaluator: Evaluator, every: int = 1, stack: Stack | None = None) -> None:
        """Prepare.

        Args:
            evaluator: inside its ``with`` block.
            every: of so many tokens the shares of one are kept.
            stack: see above.
        """
        self.evaluator, self.stack = evaluator, stack
        self._every = every
        self._current: tuple[tuple[int, ...], Seen] = ((), Seen())

    @property
    def chunks(self) -> list[tuple[int, ...]]:
        """The places of the batches of each chunk."""
        places = range(len(self.evaluator.reference.batches))
        return [tuple(places[start : start + CHUNK]) for start in range(0, len(places), CHUNK)]

    def see(self, chunk: tuple[int, ...]) -> Seen:
        """Run the unmodified model over this process's batches of a chunk.

        Raises:
            ValueError: a logit is NaN, or experts are not called as ``hooked_pairs`` needs it.
        """
        if self._current[0] != chunk:
            seen = Seen()
            own = [place for place in self.evaluator.own_places if place in chunk]
            with self.evaluator.unmodified() as model, _sizes_seen(model, seen.sizes):
                for place in own:
                    self._see_batch(place, seen)
            self._current = (chunk, seen)
        return self._current[1]

    def found(self, chunk: tuple[int, ...]) -> tuple[Shares, Chosen, dict[str, int]]:
        """Return the shares, experts and sizes of a chunk, the same in all processes."""
        evaluator = self.evaluator
        description = {
            "survey": "shares and experts",
            "places": list(chunk),
            "every": self._every,
            "share": evaluator.policy.share,
            "special": list(evaluator.policy.special_token_ids),
        }

        def compute() -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for part in evaluator.processes.gather(lambda: _flat(self.see(chunk))):
                found |= part
            return found

        samples = sum(len(evaluator.reference.layout[place][0]) for place in chunk)
        forwards = samples * len(evaluator.layers)
        tensors = evaluator.ledger.tensors(description, compute, forwards, samples)
        return _unflat(tensors, chunk)

    def _see_batch(self, place: int, seen: Seen) -> None:
        evaluator, reference = self.evaluator, self.evaluator.reference
        with ExitStack() as hooks:
            if self.stack is not None:
                prefix = seen.prefixes[place] = Prefix()
                hooks.enter_context(recording(self.stack, prefix))
            seen.shares[place] = hooks.enter_context(
                recorded_shares(evaluator.model, evaluator.policy, self._every)
            )
            seen.experts[place] = hooks.enter_context(
                recorded_experts(evaluator.model, evaluator.policy, self._every)
            )
            if reference.missing([place]):
                reference.record_at(evaluator.model, [place])
            else:
                answer_logits(evaluator.model, reference.batches[place])


def number_of_experts(layer: nn.Module) -> int:
    """Return E of a module that owns experts."""
    stacked = [parameter for parameter in layer.parameters(recurse=False) if parameter.dim() == 3]
    if stacked:
        return int(stacked[0].shape[0])
    return max(len(part) for part in layer.modules() if isinstance(part, nn.ModuleList))


def joined_shares(parts: Sequence[Shares]) -> Shares:
    """Put shares of several chunks together."""
    return {
        path: {name: torch.cat([part[path][name] for part in parts]) for name in parts[0][path]}
        for path in parts[0]
    }


@contextmanager
def _sizes_seen(model: nn.Module, sizes: dict[str, int]) -> Iterator[None]:
    def see(path: str, args: tuple[Any, ...]) -> None:
        sizes[path] = args[0].shape[-1]

    with ExitStack() as hooks:
        for path, layer in find_expert_modules(model).items():
            handle = layer.register_forward_pre_hook(lambda _, args, path=path: see(path, args))
            hooks.callback(handle.remove)
        yield


def _flat(seen: Seen) -> dict[str, Tensor]:
    """Name each tensor by what it is, place, modality and layer; and H by layer."""
    found = {f"size//{path}": torch.tensor(h) for path, h in seen.sizes.items()}
    for kind, by_place in (("share", seen.shares), ("expert", seen.experts)):
        for place, by_path in by_place.items():
            for path, by_name in by_path.items():
                for name, values in by_name.items():
                    found[f"{kind}/{place}/{name}/{path}"] = values
    return found


def _unflat(
    tensors: Mapping[str, Tensor], chunk: Sequence[int]
) -> tuple[Shares, Chosen, dict[str, int]]:
    sizes = {
        key.removeprefix("size//"): int(value)
        for key, value in tensors.items()
        if key.startswith("size//")
    }

    def joined(kind: str) -> Shares:
        return {
            path: {
                name: torch.cat([tensors[f"{kind}/{place}/{name}/{path}"] for place in chunk])
                for name in CALIBRATED
            }
            for path in sizes
        }

    return joined("share"), joined("expert"), sizes
