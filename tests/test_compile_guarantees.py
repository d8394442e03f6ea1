"""What torch.compile promises still holds: few graphs, none anew at another target, caches."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

import modes_fx
from modes_fx import Modality, SkipPolicy
from modes_fx.attach import find_expert_modules, keep_all_theta, set_thetas
from modes_fx.backend import BackendOptions, compile_graph
from modes_fx.kernels import reference
from tests import inductor_process
from tests.oracle import codes_of, eager_oracle, middle_threshold
from tests.tiny import GroupedExperts, chat, left_padded, tiny_vlm

LAYERS = [f"model.language_model.layers.{i}.mlp.experts" for i in range(2)]


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    return tiny_vlm()


@pytest.fixture
def model(pristine) -> Iterator[nn.Module]:
    torch.compiler.reset()
    counters.clear()
    with torch.no_grad():
        yield copy.deepcopy(pristine)


class Captures(list):
    """A strict backend that runs node by node, and the layers of every graph it was given."""

    def backend(self, module: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        options = BackendOptions(compiler="eager", strict=True)
        return compile_graph(module, example_inputs, options, self.append)


def half_skipped(pristine: nn.Module, call: dict) -> dict[str, torch.Tensor]:
    """Thresholds that skip about half the pairs of each layer, in gaps between observed shares."""
    thetas = {path: keep_all_theta() for path in LAYERS}
    for theta, fraction in zip(thetas.values(), (0.5, 0.4), strict=True):
        theta[Modality.TEXT] = middle_threshold(pristine, call, fraction)
    return thetas


def test_generate_with_a_static_cache_captures_once_for_prefill_and_once_for_decode(
    model, pristine
) -> None:
    call = left_padded(chat(text=5), chat(text=3, seed=1))
    length = {"max_new_tokens": 65, "do_sample": False, "cache_implementation": "static"}
    expected = pristine.generate(**call, **length)
    alpha = {path: {"text": 1.0, "vision": 1.0} for path in LAYERS}
    policy = SkipPolicy(alpha, {0.0: {"text": 0.0}, 1.0: {"text": 2.0}})
    modes_fx.attach(model, policy, target=0.0)
    captures = Captures()
    model.compile(backend=captures.backend, fullgraph=True)

    assert torch.equal(model.generate(**call, **length), expected)
    assert [len(capture) for capture in captures] == [2, 2]

    modes_fx.set_target(model, 1.0)
    skipping = model.generate(**call, **length)
    assert not torch.equal(skipping, expected)
    modes_fx.set_target(model, 0.0)
    assert torch.equal(model.generate(**call, **length), expected)
    assert len(captures) == counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize("how", ["dynamic", "marked"])
def test_one_graph_serves_prompts_of_every_length(model, pristine, how) -> None:
    calls = [chat(text=length, seed=length) for length in (7, 12, 31)]
    modes_fx.attach(model)
    captures = Captures()
    compiled = torch.compile(
        model, backend=captures.backend, fullgraph=True, dynamic=True if how == "dynamic" else None
    )
    for call in calls:
        if how == "marked":
            for name in call:
                torch._dynamo.mark_dynamic(call[name], 1)
        thetas = half_skipped(pristine, call)
        set_thetas(model, thetas)
        got = compiled(**call, use_cache=False).logits
        with eager_oracle(pristine, thetas, codes_of(call)):
            expected = pristine(**call, use_cache=False).logits
        assert_close(got, expected, rtol=0, atol=1e-5)
    assert len(captures) == 1


@pytest.mark.parametrize("regional", [False, True])
def test_layers_with_tied_experts_keep_their_own_thresholds(model, pristine, regional) -> None:
    tied = copy.deepcopy(pristine)
    for other in (tied, model):
        first, second = find_expert_modules(other).values()
        second.gate_up_proj, second.down_proj = first.gate_up_proj, first.down_proj
    call = chat(text=7)
    thetas = half_skipped(tied, call)
    set_thetas(modes_fx.attach(model), thetas)
    captures = Captures()
    for part in model.model.language_model.layers if regional else [model]:
        part.compile(backend=captures.backend, fullgraph=True)
    got = model(**call, use_cache=False).logits
    with eager_oracle(tied, thetas, codes_of(call)):
        assert_close(got, tied(**call, use_cache=False).logits, rtol=0, atol=1e-5)
    paths = {report.path for capture in captures for report in capture}
    assert paths == ({LAYERS[0]} if regional else set(LAYERS))


def run_process(cache: Path, *policies: dict[str, Any]) -> list[dict[str, Any]]:
    """Compile for each policy, in a new process that keeps its compile cache in a folder."""
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.inductor_process", json.dumps(policies)],
        cwd=Path(__file__).parents[1],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def by_reference(**options: Any) -> dict[str, torch.Tensor]:
    """What the small model gives at each target, from the semantics in plain PyTorch."""
    _, x, index, weight = inductor_process.call()
    options = {"share": "renormalised", **options}
    experts, outputs = GroupedExperts(), {}
    for target, tau in inductor_process.TARGETS.items():
        theta = keep_all_theta()
        theta[Modality.TEXT] = tau["text"] or -torch.inf
        modality = torch.zeros(len(x), dtype=torch.int8)
        kept, kept_weight = reference.gate(index, weight, modality, theta, 6, **options)
        with torch.no_grad():
            outputs[str(target)] = experts(x, kept.clamp(max=5), kept_weight)
    return outputs


@pytest.mark.slow
def test_a_warm_compile_cache_in_a_new_process_knows_no_thresholds_and_no_other_policy(tmp_path):
    others: list[dict[str, Any]] = [{"share": "weight"}, {"min_k": 2}, {"kept_mass_exponent": 1.0}]
    [cold] = run_process(tmp_path, {})
    warm, *foreign = run_process(tmp_path, {}, *others)
    assert (cold["hits"], cold["misses"]) == (0, 1)
    assert (warm["hits"], warm["misses"]) == (1, 0)
    assert [(run["hits"], run["misses"]) for run in foreign] == [(0, 1)] * 3
    for options, run in zip(({}, {}, *others), (cold, warm, *foreign), strict=True):
        assert run["graphs"] == 1
        for target, expected in by_reference(**options).items():
            got = torch.tensor(run["outputs"][target])
            assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert len({str(run["outputs"]["0.5"]) for run in (warm, *foreign)}) == 4
