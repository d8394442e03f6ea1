"""Measuring thresholds: with the rewritten op, exactly, and leaving no trace."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from modes_fx import MatchError, SkipPolicy, pair_counts
from modes_fx.attach import find_expert_modules, is_attached
from modes_fx.calibration import Evaluator, Reference, Request
from modes_fx.calibration.data import count_tokens, token_codes
from modes_fx.calibration.removals import removed_theta
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import Modality


def test_keeping_all_is_the_full_model(evaluator) -> None:
    measured = evaluator.measure(Request())
    assert measured.kl == pytest.approx(0, abs=1e-9)
    assert measured.skip_ratio == 0
    assert measured.accuracy == evaluator.reference.compare(evaluator.model).correct.double().mean()


def test_pairs_are_counted_by_layer_and_modality(evaluator, batches) -> None:
    first, second = evaluator.layers
    measured = evaluator.measure(Request.of({first: removed_theta(["vision"])}))
    tokens = count_tokens(token_codes(evaluator.model, batch.inputs) for batch in batches)
    top_k, padding = 2, int(tokens[Modality.PADDING] > 0)
    assert padding, "the batches have padding, so that it can be seen not to count"
    pairs = [[top_k * tokens[m], top_k * tokens[m]] for m in Modality]
    pairs[Modality.PADDING][1] = 0
    assert measured.counts[second].tolist() == pairs
    pairs[Modality.VISION][1] = 0
    assert measured.counts[first].tolist() == pairs
    vision = tokens[Modality.VISION] / (tokens[Modality.VISION] + tokens[Modality.TEXT])
    assert measured.skip_ratio == pytest.approx(vision / 2)
    assert measured.skip_ratio_by_modality == {"text": 0, "vision": 0.5}
    assert measured.skip_ratio_by_layer == pytest.approx({first: vision, second: 0})


def test_special_tokens_never_skip_but_count_in_the_ratio(model, reference, batches) -> None:
    special = sorted(set(batches[0].inputs["input_ids"].flatten().tolist()) - {0})[:20]
    alpha = {path: {} for path in find_expert_modules(model)}
    policy = SkipPolicy(alpha=alpha, tau={0.0: {}}, special_token_ids=special)
    with Evaluator(model, reference, policy) as evaluator:
        everything = dict.fromkeys(evaluator.layers, removed_theta(["text", "vision"]))
        measured = evaluator.measure(Request.of(everything))
    tokens = count_tokens(token_codes(model, batch.inputs, special) for batch in batches)
    total = sum(tokens.values()) - tokens[Modality.PADDING]
    assert tokens[Modality.OTHER] > 0
    assert measured.skip_ratio == pytest.approx(1 - tokens[Modality.OTHER] / total)


def test_a_measurement_depends_on_nothing_measured_before(model, reference) -> None:
    theta = torch.where(keep_all_theta() == -torch.inf, 0.4, keep_all_theta())
    paths = find_expert_modules(model)
    some = Request.of(dict.fromkeys(paths, theta))
    removal = Request.of(dict.fromkeys(paths, removed_theta(["text"])))
    measured = []
    for requests in ([some], [removal, replace(some, min_k=1, kept_mass_exponent=0.5), some]):
        with Evaluator(model, reference) as evaluator:
            measured.append([evaluator.measure(request) for request in requests][-1])
    once, again = measured
    assert 0 < once.skip_ratio < 1
    assert once.kl == again.kl > 0
    assert_close(dict(once.counts), dict(again.counts), rtol=0, atol=0)


def test_experts_in_a_loop_are_measured_alike(model, batches) -> None:
    looped = copy.deepcopy(model)
    looped.set_experts_implementation("eager")
    theta = torch.where(keep_all_theta() == -torch.inf, 0.4, keep_all_theta())
    measured = []
    for one in (model, looped):
        with Evaluator(one, Reference.record(one, batches)) as evaluator:
            measured.append(evaluator.measure(Request.of(dict.fromkeys(evaluator.layers, theta))))
    assert measured[1].kl == pytest.approx(measured[0].kl, rel=1e-3)
    assert_close(dict(measured[1].counts), dict(measured[0].counts), rtol=0, atol=0)


def test_an_unknown_layer_is_refused(evaluator) -> None:
    with pytest.raises(ValueError, match=r"no MoE layer 'model\.layers\.9'"):
        evaluator.measure(Request.of({"model.layers.9": removed_theta(["text"])}))


def test_the_model_is_as_before_after_the_block(model, batches) -> None:
    model = copy.deepcopy(model)
    reference = Reference.record(model, batches)

    def state() -> list:
        return [
            (path, set(vars(module)) - {"_compiled_call_impl"}, [*hooks], [*module._buffers])
            for path, module in model.named_modules()
            for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ]

    def compiled() -> list:
        return [module for module in model.modules() if module._compiled_call_impl is not None]

    before = state()
    with Evaluator(model, reference) as evaluator:
        evaluator.measure(Request())
        assert is_attached(model)
        assert compiled()
    assert state() == before
    assert not compiled()
    with pytest.raises(ValueError, match="not attached"):
        pair_counts(model)
    assert reference.compare(model).kl == 0


@pytest.mark.filterwarnings("ignore:1 of 1 MoE layers")
def test_a_layer_that_cannot_be_rewritten_is_an_error(model, batches) -> None:
    model = copy.deepcopy(model)
    layer = next(iter(find_expert_modules(model).values()))
    layer.forward = lambda x, index, weight: x * layer.down_proj.sum()
    reference = Reference.record(model, batches)
    with (
        Evaluator(model, reference) as evaluator,
        pytest.raises(MatchError, match="calibration cannot run this model"),
    ):
        evaluator.measure(Request())
