"""The counts of work: exact for our kernels, and never more than for the other schemes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modes_fx.bench.gpu.accounting import SCHEMES, Routing, count_modes, flops
from modes_fx.bench.gpu.routing import random_routing
from modes_fx.bench.gpu.shapes import LAYERS, Layer
from modes_fx.kernels.triton import launch
from modes_fx.kernels.triton.calls import recorded
from modes_fx.kernels.triton.compaction import Gate
from modes_fx.kernels.triton.limits import INTERPRETER

SMALL = Layer("small", experts=5, top_k=2, hidden=32, intermediate=16, form="gated")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch, tmp_path):
    monkeypatch.setenv("MODES_FX_CACHE_DIR", str(tmp_path))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what the interpreter is given")
@pytest.mark.parametrize("tokens", [1, 40, 1030])
@pytest.mark.parametrize("skip", [0.0, 0.6, 1.0])
def test_what_is_counted_is_what_is_launched_and_written(tokens, skip) -> None:
    """Memory that no kernel writes holds NaN, so what was written can be counted."""
    index = random_routing(tokens, SMALL.top_k, SMALL.experts, skip)
    routing = Routing.of(index, SMALL.experts)
    theta = torch.full((5,), -torch.inf)
    gate = Gate(torch.zeros(tokens, dtype=torch.int8), None, theta, "weight", 0.0, 0)
    params = [param.normal_() for param in SMALL.params(torch.float32, "cpu")]
    x, weight = torch.randn(tokens, SMALL.hidden), torch.rand(index.shape)
    with recorded() as calls:
        launch.gated_experts(
            x, index, weight, gate, params, SMALL.body.to_json(), SMALL.experts, INTERPRETER
        )
    arguments = {call.name: call.args for call in calls}
    is_decode = tokens == 1
    block_m = 16 if is_decode else calls[-3].options["BM"]
    work = count_modes(SMALL, routing, block_m, 4)
    assert work.launches == len(calls)
    h = arguments["decode_up" if is_decode else "up_gemm"][3]
    written_rows = int((~h.isnan()).all(-1).sum())
    assert written_rows == routing.kept
    if not is_decode:
        y = arguments["down_gemm"][2]
        assert int((~y.isnan()).all(-1).sum()) == routing.kept
        tiles = int(arguments["up_gemm"][7][-1])
        assert (tiles, tiles * block_m - routing.kept) == (work.tiles, work.padded_rows)


@given(
    tokens=st.sampled_from([1, 3, 16, 100, 700]),
    skip=st.floats(0, 1),
    skew=st.sampled_from([0.0, 1.0, 2.0]),
    block_m=st.sampled_from([16, 32, 64, 128]),
    layer=st.sampled_from(list(LAYERS.values())),
)
@settings(max_examples=60)
def test_no_scheme_reads_fewer_weights_or_moves_fewer_bytes(tokens, skip, skew, block_m, layer):
    index = random_routing(tokens, layer.top_k, layer.experts, skip, skew)
    routing = Routing.of(index, layer.experts)
    ours, *others = (count(layer, routing, block_m, 2) for count in SCHEMES.values())
    for other in others:
        assert ours.weight_bytes <= other.weight_bytes
        assert ours.total_bytes < other.total_bytes
        assert ours.launches < other.launches
        if other.tiles:
            assert ours.tiles <= other.tiles


@pytest.mark.parametrize(("tokens", "launches"), [(1, 3), (256, 4), (257, 5), (32768, 5)])
def test_launches_of_a_layer_with_eight_experts_a_token(tokens, launches) -> None:
    layer = next(iter(LAYERS.values()))
    routing = Routing(tokens, tokens * 8, 0, 0, (0,) * layer.experts)
    assert count_modes(layer, routing, 64, 2).launches == launches


def test_a_pair_is_three_products_of_a_gated_layer() -> None:
    routing = Routing.of(torch.tensor([[0, 5], [5, 5]]), 5)
    assert (routing.kept, routing.hit, routing.rows) == (1, 1, 1)
    assert flops(SMALL, routing) == 2 * 3 * SMALL.hidden * SMALL.intermediate


@pytest.mark.parametrize("skip", [0.0, 0.5, 0.88, 1.0])
def test_a_random_routing_skips_just_as_much_as_asked_for(skip) -> None:
    index = random_routing(100, 8, 128, skip)
    assert int((index == 128).sum()) == round(skip * 800)
    kept = random_routing(100, 8, 128, 0.0)
    assert all(len(set(row)) == 8 for row in kept.tolist())
