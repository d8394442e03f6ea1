"""What experts add to the residual stream: found by taking them away, by layer and modality."""

from dataclasses import replace

import pytest
import torch

from modes_fx.calibration import Reference
from modes_fx.calibration.evaluator import Evaluator
from modes_fx.calibration.prefix import find_stack
from modes_fx.calibration.removals import measure_removals, measure_updates
from modes_fx.calibration.survey import Survey
from modes_fx.calibration.updates import hidden_of, update_sums, updates_of
from modes_fx.vocabulary import Modality

GROUPS = [("text",), ("vision",)]


def test_length_and_angle_of_an_update() -> None:
    before = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [1.0, 0.0]]])
    after = torch.tensor([[[2.0, 2.0], [0.0, 6.0], [-1.0, 0.0], [9.0, 9.0]]])
    codes = torch.tensor([Modality.TEXT, Modality.VISION, Modality.VISION, Modality.PADDING])
    sums = update_sums(before, after, codes)
    found = updates_of(["layer"], sums[None])["layer"]
    assert set(found) == {"text", "vision"}
    assert (found["text"].magnitude, found["text"].tokens) == (pytest.approx(1.0), 1)
    assert found["text"].angle == pytest.approx(45.0)
    assert found["vision"].magnitude == pytest.approx((1.0 + 2.0) / 2)
    assert found["vision"].angle == pytest.approx((0.0 + 180.0) / 2)


def test_the_hidden_states_are_the_first_tensor() -> None:
    hidden = torch.zeros(1, 2, 3)
    assert hidden_of((hidden, torch.ones(2))) is hidden
    assert hidden_of(hidden) is hidden


def expected_update(model, batch, path: str) -> torch.Tensor:
    """|y| / |h - y| of each token, from what the experts and the decoder layer put out."""
    seen = {}
    experts = model.get_submodule(path)
    decoder = model.get_submodule(path.rpartition(".")[0].rpartition(".")[0])
    hooks = [
        experts.register_forward_hook(lambda _, args, out: seen.update(y=out)),
        decoder.register_forward_hook(lambda _, args, out: seen.update(h=hidden_of(out))),
    ]
    with torch.no_grad():
        model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    y, h = (seen[name].reshape(-1, seen["h"].shape[-1]) for name in ("y", "h"))
    return y.norm(dim=-1) / (h - y).norm(dim=-1)


def test_updates_are_those_of_the_experts_alone(model, batches) -> None:
    batch = replace(batches[0], samples=range(6))
    with Evaluator(model, Reference([batch])) as evaluator:
        survey = Survey(evaluator, 1, find_stack(model, evaluator.layers))
        measure_removals(survey, GROUPS)
        passes = evaluator.passes
        updates = measure_updates(survey, GROUPS)
        assert evaluator.passes == passes, "the removals have shown them"
        paths = evaluator.layers
    assert list(updates) == paths
    real = batch.inputs["attention_mask"].bool().flatten()
    for path in paths:
        assert set(updates[path]) == {"text"}
        wanted = expected_update(model, batch, path)[real].mean()
        assert updates[path]["text"].magnitude == pytest.approx(float(wanted), rel=1e-4)
        assert updates[path]["text"].tokens == int(real.sum())


def test_other_removals_tell_nothing_of_updates(model, batches, evaluator) -> None:
    assert measure_updates(Survey(evaluator, 1, None), GROUPS) == {}
    stack = find_stack(model, evaluator.layers)
    assert measure_updates(Survey(evaluator, 1, stack), GROUPS, returned="input") == {}
