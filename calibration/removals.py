"""What removing the routed experts of one layer does to the answers, for every layer.

The samples run through a layer's removal only from that layer on (``modes_fx.calibration.prefix``):
L (L + 2) layer-forwards a sample with two modalities and the first pass, where removing each layer
in a pass of its own takes L (2 L + 1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modes_fx.calibration.data import Batch, token_codes
from modes_fx.calibration.measurement import Difference, combine_differences
from modes_fx.calibration.prefix import Prefix, Stack, resuming
from modes_fx.calibration.reference import answer_logits
from modes_fx.calibration.request import Request
from modes_fx.calibration.survey import Survey
from modes_fx.calibration.updates import (
    FIELDS,
    Update,
    hidden_of,
    seen_output,
    update_sums,
    updates_of,
)
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import CALIBRATED, ModalityName

Group = tuple[ModalityName, ...]
Returned = Literal["zero", "input"]
"""What a removed layer puts out for the tokens concerned: nothing, as published; or its own input,
as in the method's released code."""

FLOATS, INTEGERS = ("kl_sums", "squared_errors"), ("tokens", "agreeing", "missed")


def measure_removals(
    survey: Survey,
    groups: Sequence[Group],
    *,
    returned: Returned = "zero",
    on_progress: Callable[[float], None] = lambda done: None,
) -> dict[str, dict[Group, Difference]]:
    """Measure the removal of each layer's routed experts for the tokens of each group.

    Args:
        survey: of the samples; resumes in its stack, or runs all layers where it has none.
        groups: modalities that are removed together.
        returned: see :data:`Returned`.
        on_progress: called with the share that is done.

    Returns:
        How far the answers moved, by layer and group.
    """
    evaluator = survey.evaluator
    paths, chunks = evaluator.layers, survey.chunks
    parts: dict[str, dict[Group, list[Difference]]] = {
        path: {group: [] for group in groups} for path in paths
    }
    for number, chunk in enumerate(chunks, start=1):
        tensors = _measured(survey, chunk, groups, returned)
        samples = sorted(s for place in chunk for s in evaluator.reference.layout[place][0])
        for at, path in enumerate(paths):
            for of, group in enumerate(groups):
                fields = {name: tensors[name][at, of] for name in (*FLOATS, *INTEGERS)}
                parts[path][group].append(Difference(samples=samples, **fields))
        on_progress(number / len(chunks))
    return {
        path: {group: combine_differences(found) for group, found in by_group.items()}
        for path, by_group in parts.items()
    }


def measure_updates(
    survey: Survey, groups: Sequence[Group], *, returned: Returned = "zero"
) -> Mapping[str, Mapping[ModalityName, Update]]:
    """Return how far each layer's routed experts move tokens; :func:`measure_removals` ran for it.

    Args:
        survey: the same.
        groups: the same.
        returned: the same.

    Returns:
        By layer and modality; empty where the removed layer put out something else than nothing, or
        there is no stack whose layers' outputs could be compared.
    """
    if returned != "zero" or survey.stack is None:
        return {}
    measured = [_measured(survey, chunk, groups, returned)["updates"] for chunk in survey.chunks]
    return updates_of(survey.evaluator.layers, torch.stack(measured).sum(0))


def removed_theta(modalities: Sequence[ModalityName]) -> Tensor:
    """Return thresholds ``[M]`` that skip every pair of these modalities and keep all others."""
    theta = keep_all_theta()
    for name in modalities:
        theta[CALIBRATED[name]] = torch.inf
    return theta


def removal_forwards(survey: Survey, groups: int) -> int:
    """Return how many MoE layers a sample runs through to remove each layer for so many groups."""
    places = _places(survey)
    return groups * sum(sum(later >= place for later in places) for place in places)


def _measured(
    survey: Survey, chunk: tuple[int, ...], groups: Sequence[Group], returned: Returned
) -> dict[str, Tensor]:
    """Return by field ``[layers, groups, samples of the chunk]``; updates ``[layers, C, 3]``."""
    evaluator = survey.evaluator
    layout = evaluator.reference.layout
    samples = sum(len(layout[place][0]) for place in chunk)
    description = {
        "removals": [list(group) for group in groups],
        "updates": survey.stack is not None and returned == "zero",
        "returned": returned,
        "places": list(chunk),
        "special": list(evaluator.policy.special_token_ids),
    }

    def compute() -> dict[str, Tensor]:
        own = [place for place in evaluator.own_places if place in chunk]
        removal = _Removal(survey, returned)

        def run() -> tuple[list[list[Difference]], Tensor]:
            prefixes = survey.see(chunk).prefixes
            found = [removal.of_batch(place, groups, prefixes.get(place)) for place in own]
            return found, removal.updates

        shares = evaluator.processes.gather(run)
        by_batch = [found for differences, _ in shares for found in differences]
        merged = [combine_differences(list(parts)) for parts in zip(*by_batch, strict=True)]
        shape = (len(evaluator.layers), len(groups), -1)
        fields = {
            name: torch.stack([getattr(difference, name) for difference in merged]).view(shape)
            for name in (*FLOATS, *INTEGERS)
        }
        return {**fields, "updates": torch.stack([updates for _, updates in shares]).sum(0)}

    forwards = samples * removal_forwards(survey, len(groups))
    passes = samples * forwards // max(samples * len(evaluator.layers), 1)
    return evaluator.ledger.tensors(description, compute, forwards, passes)


class _Removal:
    """Runs batches with each layer removed in turn.

    Attributes:
        updates: the sums of ``update_sums`` over the batches so far, ``[layers, C, 3]``.
    """

    def __init__(self, survey: Survey, returned: Returned) -> None:
        self._survey, self._returned = survey, returned
        shape = (len(survey.evaluator.layers), len(CALIBRATED), len(FIELDS))
        self.updates = torch.zeros(shape, dtype=torch.float64)

    def of_batch(
        self, place: int, groups: Sequence[Group], prefix: Prefix | None
    ) -> list[Difference]:
        """Return how far the answers moved, layer by layer, group by group."""
        reference = self._survey.evaluator.reference
        batch, stack = reference.batches[place], self._survey.stack
        found = []
        for number, path in enumerate(self._survey.evaluator.layers):
            for group in groups:
                with self._removed(path, group, batch) as model, ExitStack() as resumed:
                    if stack is not None and prefix is not None:
                        at = stack.place[path]
                        resumed.enter_context(resuming(stack, prefix, at))
                        outputs = resumed.enter_context(seen_output(stack.layers[at]))
                    logits = answer_logits(model, batch)
                found.append(reference.difference(place, logits))
                if stack is not None and prefix is not None and self._returned == "zero":
                    after = hidden_of(prefix.layers[at])
                    self.updates[number] += self._moved(group, batch, outputs[0], after)
        return found

    def _moved(self, group: Group, batch: Batch, before: Tensor, after: Tensor) -> Tensor:
        """Return ``update_sums`` of the group's tokens alone."""
        evaluator = self._survey.evaluator
        special = evaluator.policy.special_token_ids
        codes = token_codes(evaluator.model, batch.inputs, special)
        sums = update_sums(before, after, codes)
        others = [place for place, name in enumerate(CALIBRATED) if name not in group]
        sums[others] = 0.0
        return sums

    @contextmanager
    def _removed(self, path: str, group: Group, batch: Batch) -> Iterator[nn.Module]:
        evaluator = self._survey.evaluator
        if self._returned == "zero":
            evaluator.apply(Request.of({path: removed_theta(group)}))
            yield evaluator.model
            return
        with evaluator.unmodified() as model:
            codes = token_codes(model, batch.inputs, evaluator.policy.special_token_ids)
            removed = torch.isin(codes, torch.tensor([CALIBRATED[name] for name in group]))

            def put_out_input(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                first = output[0] if isinstance(output, tuple) else output
                rows = removed.to(first.device).view(*first.shape[:-1], 1)
                changed = torch.where(rows, args[0].view_as(first), first)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            block = model.get_submodule(path.rpartition(".")[0])
            handle = block.register_forward_hook(put_out_input)
            try:
                yield model
            finally:
                handle.remove()


def _places(survey: Survey) -> list[int]:
    """Where each module with experts is in the stack; all at the front where there is none."""
    paths, stack = survey.evaluator.layers, survey.stack
    return [stack.place[path] if stack is not None else 0 for path in paths]


__all__ = [
    "Group",
    "Returned",
    "Stack",
    "measure_removals",
    "measure_updates",
    "removal_forwards",
    "removed_theta",
]
