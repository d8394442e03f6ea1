"""Means are those of the pairs that are skipped, and adding them brings the answers nearer."""

import pytest
import torch
from torch.testing import assert_close

from modes_fx.attach import attached
from modes_fx.calibration import Request
from modes_fx.calibration.means import SHRINKAGE, collect_means
from modes_fx.hooks import MEAN_SUMS, keep_all_theta
from modes_fx.vocabulary import Modality


@pytest.fixture
def request_that_skips(evaluator) -> Request:
    theta = torch.where(keep_all_theta() == -torch.inf, 0.45, keep_all_theta())
    return Request.of(dict.fromkeys(evaluator.layers, theta))


def collected(evaluator, request) -> dict[str, torch.Tensor]:
    return collect_means(
        evaluator, request, dict.fromkeys(evaluator.layers, (8, 32)), torch.float32
    )


def test_they_are_the_shrunk_least_squares_of_what_is_skipped(
    model, reference, evaluator, request_that_skips
) -> None:
    """In the first layer, whose inputs skipping does not change."""
    first = evaluator.layers[0]
    means = collected(evaluator, request_that_skips)[first]
    sums, squares = torch.zeros(3, 8, 32), torch.zeros(3, 8, 1)
    with evaluator.unmodified() as unmodified:
        layer = unmodified.get_submodule(first)
        seen = []
        handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args))
        with torch.no_grad():
            for batch in reference.batches:
                unmodified(**batch.inputs)
        handle.remove()
        for (x, index, weight), batch in zip(seen, reference.batches, strict=True):
            codes = batch.inputs["mm_token_type_ids"].clone()
            codes[batch.inputs["attention_mask"] == 0] = Modality.PADDING
            share = weight / weight.sum(-1, keepdim=True)
            for t, i in ((share < 0.45) & (codes.flatten() < 3)[:, None]).nonzero().tolist():
                e, code, w = index[t, i], int(codes.flatten()[t]), weight[t, i]
                with torch.no_grad():
                    y = layer(x[t, None], e.view(1, 1), w.view(1, 1))[0]
                sums[code, e] += w * y
                squares[code, e] += w * w
    denominator = squares + SHRINKAGE * squares.mean(1, keepdim=True)
    expected = torch.where(denominator > 0, sums / denominator, 0)
    assert_close(means, expected, rtol=1e-3, atol=1e-4)
    assert not means[Modality.AUDIO].any()


def test_adding_them_brings_the_answers_nearer(evaluator, request_that_skips) -> None:
    digest = evaluator.add_means(collected(evaluator, request_that_skips))
    thetas = {path: request_that_skips.theta(path) for path in evaluator.layers}
    plain = evaluator.measure(request_that_skips)
    helped = evaluator.measure(Request.of(thetas, mean_strength=1.0, means=digest))
    assert helped.kl < plain.kl
    nothing_skipped = evaluator.measure(Request.of({}, mean_strength=1.0, means=digest))
    assert nothing_skipped.kl == pytest.approx(0, abs=1e-9)


def test_collecting_leaves_no_trace(evaluator, request_that_skips) -> None:
    before = evaluator.measure(request_that_skips)
    collected(evaluator, request_that_skips)
    layers = attached(evaluator.model).layers.values()
    assert all(getattr(layer, MEAN_SUMS) is None for layer in layers)
    evaluator.ledger.measured.clear()
    assert evaluator.measure(request_that_skips).kl == before.kl
