"""Expert loops: attach says them as one op, the backend gates it, detach gives the loop back."""

import pytest
import torch
from torch import nn

from modes_fx import MatchError, attach, detach, explain, modes_backend
from modes_fx.attach import find_expert_modules, keep_all_theta, pair_counts, set_thetas
from modes_fx.kernels import reference
from modes_fx.vocabulary import Modality
from tests.blocks import (
    EXPERTS,
    HIDDEN,
    Block,
    CapacityEinsum,
    CountsOnTheHost,
    Crowded,
    IndexAddLoop,
    OneHotChoice,
    OneHotMasks,
    PaddedBlocks,
    ReturnsLogits,
    Routed,
    SeparateWhere,
    SortedSegments,
    TallBlock,
    TallMatrices,
    TinyModel,
    WithIdentity,
    prompt,
)
from tests.tiny import compile_observed

LOOPS = {
    "index_add": lambda: Routed(IndexAddLoop()),
    "tall_matrices": lambda: Routed(TallMatrices()),
    "one_hot": OneHotChoice,
    "identity": lambda: Routed(WithIdentity()),
}


@pytest.fixture(params=LOOPS)
def model(request):
    return TinyModel(LOOPS[request.param]())


BLOCKS = {
    "counts on the host": (CountsOnTheHost, "renormalised"),
    "one-hot masks": (OneHotMasks, "renormalised"),
    "two outputs": (ReturnsLogits, "renormalised"),
    "sorted segments": (SortedSegments, "renormalised"),
    "tall matrices": (TallBlock, "renormalised"),
    "separate masks": (SeparateWhere, "weight"),
}


def run(call, **inputs):
    with torch.no_grad():
        return call(**inputs)


def without_small_weights(layer, args):
    """What skipping means, said by the loop itself: the weight of a skipped pair is 0."""
    x, choice, weight = args
    share = "weight" if weight.shape[1] == 1 else "renormalised"
    return x, choice, weight.masked_fill(reference.routing_share(weight, share) < 0.45, 0)


def test_a_loop_gives_the_same_numbers_and_skips_pairs(model):
    inputs = prompt()
    (path, experts), *others = find_expert_modules(model).items()
    assert path == "layer.experts"
    assert not others
    full = run(model, **inputs)
    handle = experts.register_forward_pre_hook(without_small_weights)
    skipped = run(model, **inputs)
    handle.remove()
    assert not torch.allclose(skipped, full, atol=1e-2)

    attach(model, count_pairs=True)
    fast, reports = compile_observed(model, strict=True)
    torch.testing.assert_close(run(fast, **inputs), full, atol=1e-5, rtol=1e-5)
    assert {(report.form, report.status, report.gated) for report in reports} == {
        ("loop", "rewritten", True)
    }
    theta = keep_all_theta()
    theta[Modality.TEXT] = 0.45
    set_thetas(model, {path: theta})
    pair_counts(model, reset=True)
    torch.testing.assert_close(run(fast, **inputs), skipped, atol=1e-5, rtol=1e-5)
    everything, kept = pair_counts(model)[path][Modality.TEXT].tolist()
    assert 0 < kept < everything
    assert len(reports) == 1, "new thresholds recompiled the graph"


@pytest.mark.parametrize("style", BLOCKS)
def test_a_block_that_routes_tokens_itself_works_alike(style, monkeypatch):
    block, share = BLOCKS[style]
    model, inputs = TinyModel(block()), prompt()
    threshold = 0.45

    def keep(weight):
        pairs = weight if weight.dim() == 2 and share == "renormalised" else weight[..., None]
        return weight.masked_fill(
            (reference.routing_share(pairs, share) < threshold).view_as(weight), 0
        )

    full = run(model, **inputs)
    with monkeypatch.context() as patched:
        patched.setattr(Block, "keep", staticmethod(keep))
        skipped = run(model, **inputs)
    assert not torch.allclose(skipped, full, atol=1e-2)

    attach(model, count_pairs=True)
    fast, reports = compile_observed(model, strict=True)
    torch.testing.assert_close(run(fast, **inputs), full, atol=1e-5, rtol=1e-5)
    assert [(report.form, report.status) for report in reports] == [("loop", "rewritten")]
    theta = keep_all_theta()
    theta[Modality.TEXT] = threshold
    path = reports[0].path
    set_thetas(model, {path: theta})
    pair_counts(model, reset=True)
    torch.testing.assert_close(run(fast, **inputs), skipped, atol=1e-5, rtol=1e-5)
    everything, kept = pair_counts(model)[path][Modality.TEXT].tolist()
    assert 0 < kept < everything
    decoded = run(fast, **prompt(batch=1, length=1))
    assert decoded.shape == (1, 1, HIDDEN)
    detach(model)
    torch.testing.assert_close(run(model, **inputs), full)


@pytest.mark.parametrize("layer", [CountsOnTheHost, OneHotChoice])
def test_a_graph_that_no_loop_could_be_in_holds_for_other_sizes(layer):
    model = TinyModel(layer())
    prompts = [prompt(*sizes) for sizes in ((2, 7), (3, 5), (4, 64))]
    expected = [run(model, **inputs) for inputs in prompts]
    options = {"strict": True, "compiler": "eager"}
    with torch._dynamo.config.patch(error_on_recompile=True):
        fast = torch.compile(
            attach(model), backend=modes_backend, options=options, fullgraph=True, dynamic=True
        )
        for inputs, wanted in zip(prompts, expected, strict=True):
            torch.testing.assert_close(run(fast, **inputs), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [CapacityEinsum, PaddedBlocks])
def test_a_block_in_another_style_is_left_alone_and_reported(block):
    model = TinyModel(block())
    full = run(model, **prompt())
    attach(model)
    fast, reports = compile_observed(model)
    torch.testing.assert_close(run(fast, **prompt()), full)
    assert {report.status for report in reports} == {"refused"}
    assert all(report.reason for report in reports)


def test_a_block_that_drops_tokens_of_a_crowd_is_refused():
    with pytest.raises(
        ValueError, match="layer loops over experts, but its rewrite gives other numbers"
    ):
        attach(TinyModel(Crowded()))


def test_a_block_called_in_another_way_runs_its_own_loop_and_says_so():
    model = attach(TinyModel(SeparateWhere()))
    rows = torch.randn(5, HIDDEN)
    with pytest.warns(UserWarning, match="called in a way that was not proved"):
        out = run(lambda: model.layer(rows))
    detach(model)
    assert torch.equal(out, run(lambda: model.layer(rows)))


def test_an_attached_loop_computes_every_expert_until_it_is_compiled(model):
    full = run(model, **prompt())
    attach(model)
    set_thetas(model, dict.fromkeys(find_expert_modules(model), torch.full((5,), torch.inf)))
    with pytest.warns(UserWarning, match="did not go through modes_backend"):
        torch.testing.assert_close(run(model, **prompt()), full, atol=1e-5, rtol=1e-5)


def test_detach_gives_the_loop_back(model):
    full = run(model, **prompt())
    before = {name: p.clone() for name, p in model.state_dict().items()}
    detach(attach(model))
    assert "forward" not in vars(model.layer.experts)
    assert torch.equal(run(model, **prompt()), full)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages), "parameters still share the stacked storage"


def test_experts_with_weights_of_their_own_are_held_once():
    model = TinyModel(Routed(IndexAddLoop()))
    attach(model)
    experts = model.layer.experts.experts
    stacks = {expert.down.weight.untyped_storage().data_ptr() for expert in experts}
    assert len(stacks) == 1
    size = experts[0].down.weight.untyped_storage().nbytes()
    assert size == EXPERTS * experts[0].down.weight.nbytes


def test_new_weights_are_seen():
    model = TinyModel(Routed(IndexAddLoop()))
    attach(model)
    fast, _ = compile_observed(model, strict=True)
    run(fast, **prompt())
    for parameter in model.layer.experts.parameters():
        parameter.mul_(1.5)
    changed = run(fast, **prompt())
    detach(model)
    torch.testing.assert_close(changed, run(model, **prompt()), atol=1e-5, rtol=1e-5)


def test_a_model_converted_after_it_was_attached_is_refused():
    model = attach(TinyModel(Routed(IndexAddLoop())))
    model.double()
    with pytest.raises(RuntimeError, match="detach, move or convert the model, then attach again"):
        run(model, **prompt())


@pytest.mark.parametrize("style", BLOCKS)
def test_low_precision_is_proved_against_float32(style):
    model = TinyModel(BLOCKS[style][0]()).bfloat16()
    full = run(model, **prompt())
    fast, _ = compile_observed(attach(model), strict=True)
    torch.testing.assert_close(run(fast, **prompt()), full, atol=0.02, rtol=0.02)


class ScaledByPlace(IndexAddLoop):
    """Every expert computes something else."""

    def one(self, e, expert, rows, weight):
        return expert(rows) * weight * (e + 1)


class AcrossTokens(IndexAddLoop):
    """What an expert gives a token depends on the other tokens."""

    def one(self, e, expert, rows, weight):
        return (expert(rows) * weight).cumsum(0)


class NotASum(IndexAddLoop):
    """The experts' sum is bent afterwards."""

    def finish(self, out):
        return out.tanh()


class DropsTokens(IndexAddLoop):
    """An expert takes only its first tokens, which shows when many tokens choose it."""

    def one(self, e, expert, rows, weight):
        return expert(rows) * weight * (torch.arange(len(rows)) < 40)[:, None]


class SeesTheWeightTwice(IndexAddLoop):
    def one(self, e, expert, rows, weight):
        return expert(rows * weight) * weight.sqrt()


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (ScaledByPlace, "do not all compute the same"),
        (AcrossTokens, "gives other numbers"),
        (NotASum, "gives other numbers"),
        (DropsTokens, "gives other numbers"),
    ],
)
def test_a_near_miss_keeps_its_loop_and_says_why(loop, reason):
    model = TinyModel(Routed(loop()))
    with pytest.raises(ValueError, match="has no MoE layer to skip experts in") as failure:
        attach(model)
    assert "layer.experts" in str(failure.value)
    assert reason in str(failure.value)


def test_a_weight_that_is_used_in_any_row_wise_way_is_part_of_the_body():
    model = TinyModel(Routed(SeesTheWeightTwice()))
    full = run(model, **prompt())
    fast, reports = compile_observed(attach(model), strict=True)
    torch.testing.assert_close(run(fast, **prompt()), full, atol=1e-5, rtol=1e-5)
    assert "sqrt" in reports[0].body


class TwoLayers(TinyModel):
    """One layer whose loop can run as an op, and one whose loop cannot."""

    def __init__(self):
        super().__init__(nn.Sequential(Routed(TallMatrices()), Routed(NotASum())))


def test_explain_tells_which_loops_run_as_an_op_and_why_others_do_not():
    good, bad = explain(TwoLayers(), **prompt()).layers
    assert (good.path, good.form, good.status) == ("layer.0.experts", "loop", "rewritten")
    assert good.max_error < 1e-5
    assert (bad.path, bad.form, bad.status) == ("layer.1.experts", "loop", "refused")
    assert "gives other numbers" in bad.reason


def test_a_loop_that_cannot_be_rewritten_is_named_and_strict_makes_it_an_error():
    class AcrossTokens(IndexAddLoop):
        def forward(self, x, index, weight):
            return super().forward(x, index, weight).cumsum(0)

    model = TinyModel(Routed(IndexAddLoop()))
    model.other = Routed(AcrossTokens())
    reason = r"loops over experts, 1 cannot be rewritten.*other\.experts: its rewrite gives other"
    with pytest.raises(MatchError, match=f"strict: .*{reason}"):
        attach(model, strict=True)
    with pytest.warns(UserWarning, match=reason):
        attach(model)
    detach(model)
