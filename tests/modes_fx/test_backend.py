"""The backend on a multimodal model: all is rewritten, tau 0 changes nothing, skipping is real."""

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor_config
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import modes_fx
from modes_fx import MatchError, modes_backend
from modes_fx.attach import find_expert_modules, keep_all_theta, set_thetas
from modes_fx.backend import BackendOptions, compile_graph
from modes_fx.kernels import cpu
from modes_fx.vocabulary import Modality
from tests.oracle import codes_of, eager_oracle, middle_threshold
from tests.tiny import (
    GroupedExperts,
    chat,
    compile_observed,
    left_padded,
    routed_tokens,
    tiny_vlm,
)

EAGER = {"compiler": "eager"}
CALLS = {
    "text": chat(text=7),
    "one_image": chat(text=5, images=1),
    "two_images": chat(text=5, images=2),
    "padded_batch": left_padded(chat(text=9, images=1), chat(text=4, seed=1)),
}


@pytest.fixture(scope="module")
def pristine() -> nn.Module:
    return tiny_vlm()


@pytest.fixture
def model(pristine) -> Iterator[nn.Module]:
    torch.compiler.reset()
    with torch.no_grad():
        yield copy.deepcopy(pristine)


@pytest.mark.parametrize("name", CALLS)
def test_every_path_is_rewritten_and_right_with_and_without_thresholds(model, pristine, name):
    call = CALLS[name]
    real = call["attention_mask"].bool()
    theta = keep_all_theta()
    theta[Modality.TEXT] = middle_threshold(pristine, call, 0.3)
    theta[Modality.VISION] = middle_threshold(pristine, call, 0.6)
    layers = find_expert_modules(pristine)
    compiled, reports = compile_observed(modes_fx.attach(model, count_pairs=True), strict=True)

    assert_close(compiled(**call).logits[real], pristine(**call).logits[real], rtol=0, atol=1e-5)
    assert {report.path for report in reports} == set(layers)
    assert all(report.status == "rewritten" and report.gated for report in reports)

    thetas = dict.fromkeys(layers, theta)
    set_thetas(model, thetas)
    modes_fx.pair_counts(model, reset=True)
    got = compiled(**call).logits[real]
    with eager_oracle(pristine, thetas, codes_of(call)):
        assert_close(got, pristine(**call).logits[real], rtol=0, atol=1e-5)
    kept = torch.stack(list(modes_fx.pair_counts(model).values())).sum(0)
    assert 0 < kept[:, 1].sum() < kept[:, 0].sum()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, as deterministic mode does."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned_memory")
def test_experts_whose_pairs_are_all_skipped_may_be_nan(model, pristine) -> None:
    call = CALLS["two_images"]
    theta = keep_all_theta()
    theta[[Modality.TEXT, Modality.VISION]] = middle_threshold(pristine, call, 0.8)
    thetas = dict.fromkeys(find_expert_modules(pristine), theta)
    compiled, _ = compile_observed(modes_fx.attach(model), strict=True)
    compiled(**call)
    set_thetas(model, thetas)
    only_skipped = {}

    def record(path, args) -> None:
        _, index, weight = args
        only_skipped[path] = sorted(set(index.flatten().tolist()) - set(index[weight > 0].tolist()))

    with eager_oracle(pristine, thetas, codes_of(call)):
        handles = [
            pristine.get_submodule(path).register_forward_pre_hook(
                lambda _, args, path=path: record(path, args)
            )
            for path in thetas
        ]
        expected = pristine(**call).logits
    for handle in handles:
        handle.remove()
    assert all(only_skipped.values())
    for path, experts in only_skipped.items():
        for parameter in model.get_submodule(path).parameters():
            parameter[experts] = torch.nan
    assert_close(compiled(**call).logits, expected, rtol=0, atol=1e-5)
    set_thetas(model, dict.fromkeys(thetas, keep_all_theta()))
    assert compiled(**call).logits.isnan().any()


def test_generate_decodes_through_the_rewritten_layers(model, pristine) -> None:
    call = CALLS["padded_batch"]
    length = {"max_new_tokens": 4, "do_sample": False}
    expected = pristine.generate(**call, **length)
    modes_fx.attach(model, count_pairs=True)
    model.compile(backend=modes_backend, options={"compiler": "eager", "strict": True})
    assert torch.equal(model.generate(**call, **length), expected)
    counts = torch.stack(list(modes_fx.pair_counts(model).values()))
    prompt, decoded = int(call["attention_mask"].sum()), 2 * 3
    assert (counts[:, : Modality.PADDING, 1].sum(-1) == 2 * (prompt + decoded)).all()


def test_the_rows_computed_are_exactly_the_kept_pairs(model) -> None:
    # In float16 the experts run through PyTorch's own products, whose rows a profile shows.
    call, model = CALLS["text"], model.half()
    theta = keep_all_theta()
    theta[Modality.TEXT] = middle_threshold(model, call, 0.5)
    compiled, _ = compile_observed(modes_fx.attach(model, count_pairs=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CPU kernels are for float32 and bfloat16")
        compiled(**call)
    set_thetas(model, dict.fromkeys(find_expert_modules(model), theta))
    modes_fx.pair_counts(model, reset=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        compiled(**call)
    shapes = [event.input_shapes for event in profiled.events() if event.name == "aten::mm"]
    kept = sum(int(count[:, 1].sum()) for count in modes_fx.pair_counts(model).values())
    assert 0 < kept < 2 * 2 * call["input_ids"].numel()
    for weight in ([32, 48], [24, 32]):
        assert sum(rows[0] for rows, matrix, *_ in shapes if matrix == weight) == kept


def test_attaching_after_the_first_compiled_call_takes_effect(model) -> None:
    call = CALLS["text"]
    compiled = torch.compile(model, backend=modes_backend, options=EAGER)
    with pytest.warns(UserWarning, match="no policy is attached"):
        before = compiled(**call).logits
    for _ in range(2):
        modes_fx.attach(model)
        set_thetas(model, dict.fromkeys(find_expert_modules(model), torch.full((5,), torch.inf)))
        assert not torch.allclose(before, compiled(**call).logits)
        modes_fx.detach(model)


def test_another_target_recompiles_nothing(model) -> None:
    call = CALLS["text"]
    compiled, reports = compile_observed(modes_fx.attach(model))
    before = compiled(**call).logits
    captured = len(reports)
    set_thetas(model, dict.fromkeys(find_expert_modules(model), torch.full((5,), torch.inf)))
    after = compiled(**call).logits
    assert len(reports) == captured
    assert not torch.allclose(before, after)


def test_one_graph_serves_many_layers_each_with_its_own_thresholds(model, pristine) -> None:
    call = CALLS["text"]
    thetas = {path: keep_all_theta() for path in find_expert_modules(pristine)}
    middle = middle_threshold(pristine, call, 0.5)
    for theta, text in zip(thetas.values(), (middle, torch.inf), strict=True):
        theta[Modality.TEXT] = text
    set_thetas(modes_fx.attach(model), thetas)
    captures = []

    def backend(module, example_inputs):
        options = BackendOptions(compiler="eager", strict=True)
        return compile_graph(module, example_inputs, options, captures.append)

    for layer in model.model.language_model.layers:
        layer.compile(backend=backend)
    got = model(**call, use_cache=False).logits
    with eager_oracle(pristine, thetas, codes_of(call)):
        assert_close(got, pristine(**call, use_cache=False).logits, rtol=0, atol=1e-5)
    assert len(captures) == 1


def test_inductor_computes_the_same(model, pristine) -> None:
    call = CALLS["text"]
    theta = keep_all_theta()
    theta[Modality.TEXT] = middle_threshold(pristine, call, 0.5)
    thetas = dict.fromkeys(find_expert_modules(pristine), theta)
    set_thetas(modes_fx.attach(model), thetas)
    compiled = torch.compile(model, backend="modes_fx", fullgraph=True)
    with eager_oracle(pristine, thetas, codes_of(call)):
        expected = pristine(**call, use_cache=False).logits
    assert_close(compiled(**call, use_cache=False).logits, expected, rtol=0, atol=1e-5)


def test_bfloat16_is_no_further_from_float32_than_the_original(pristine) -> None:
    torch.compiler.reset()
    call = CALLS["text"]
    low = copy.deepcopy(pristine).to(torch.bfloat16)
    with torch.no_grad():
        exact, original = pristine(**call).logits, low(**call).logits.float()
        compiled, reports = compile_observed(modes_fx.attach(low))
        rewritten = compiled(**call).logits.float()
    assert all(report.status == "rewritten" for report in reports)
    assert (rewritten - exact).norm() <= 1.25 * (original - exact).norm()


def test_batched_experts_are_rewritten_too(model, pristine) -> None:
    model.set_experts_implementation("batched_mm")
    compiled, reports = compile_observed(modes_fx.attach(model), strict=True)
    call = CALLS["text"]
    assert_close(compiled(**call).logits, pristine(**call).logits, rtol=0, atol=1e-5)
    assert {report.form for report in reports} == {"batched_mm"}


def test_without_a_policy_the_backend_says_that_nothing_is_skipped(model) -> None:
    with pytest.warns(UserWarning, match="no policy is attached"):
        torch.compile(model, backend=modes_backend, options=EAGER)(**CALLS["text"])


def test_a_form_that_cannot_be_captured_is_named_and_strict_makes_it_an_error() -> None:
    torch.compiler.reset()
    model = modes_fx.attach(tiny_vlm(layers=1))
    model.set_experts_implementation("eager")
    compiled = torch.compile(model, backend=modes_backend, options=EAGER)
    unmatched = r"layers\.0\.mlp\.experts: no GEMM over stacked expert"
    with torch.no_grad(), pytest.warns(UserWarning, match=unmatched):
        compiled(**CALLS["text"])
    torch.compiler.reset()
    compiled = torch.compile(model, backend=modes_backend, options=EAGER | {"strict": True})
    with torch.no_grad(), pytest.raises(Exception, match=r"strict: 1 of 1 MoE.*modes_fx\.explain"):
        compiled(**CALLS["text"])


def test_a_layer_that_no_graph_holds_is_named_and_strict_makes_it_an_error(model) -> None:
    block = model.model.language_model.layers[1]
    block.forward = torch.compiler.disable(block.forward)
    modes_fx.attach(model)
    strict = {"compiler": "eager", "strict": True}
    with pytest.warns(UserWarning, match="did not go through modes_backend"):
        torch.compile(model, backend=modes_backend, options=strict)(**CALLS["text"])
    modes_fx.detach(model)
    modes_fx.attach(model, strict=True)
    reason = r"strict: .*layers\.1\.mlp\.experts runs outside.*modes_fx\.explain"
    with pytest.raises(MatchError, match=reason):
        torch.compile(model, backend=modes_backend, options=strict)(**CALLS["text"])


def test_gradients_run_the_original_and_say_so(model) -> None:
    modes_fx.attach(model)
    compiled = torch.compile(model, backend=modes_backend, options=EAGER)
    with torch.enable_grad(), pytest.warns(UserWarning, match="records gradients"):
        compiled(**CALLS["text"]).logits.sum().backward()
    assert all(p.grad is not None for p in model.model.language_model.layers.parameters())


def test_a_missing_compiler_is_named_with_what_to_do(model) -> None:
    assert cpu.load_library()  # which is not tried again in this process
    compiled = torch.compile(modes_fx.attach(model), backend=modes_backend)
    missing = inductor_config.patch("cpp.cxx", ("no-such-compiler",))
    message = r"no-such-compiler: install one .*'compiler': 'eager'"
    with missing, pytest.raises(Exception, match=message):
        compiled(**CALLS["text"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"speed": "max"}, "option speed; it knows compiler"), ({"compiler": "gcc"}, "got 'gcc'")],
)
def test_unknown_options_are_refused(options, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        modes_backend(torch.fx.symbolic_trace(nn.ReLU()), [], options=options)


def test_an_attached_compiled_model_warns_of_nothing(model) -> None:
    compiled = torch.compile(modes_fx.attach(model), backend=modes_backend, options=EAGER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled(**CALLS["text"])
    assert not [w for w in caught if "modes" in str(w.message).lower()]


class WithCache(nn.Module):
    """Experts beside a cache that is handed over whole and in part, and written to."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = GroupedExperts()

    def forward(self, x, index, weight, cache, part, step):
        part.add_(step * x.mean())
        return self.experts(x, index, weight) + cache.sum()


def test_inputs_that_share_memory_do_not_hide_the_experts():
    torch.compiler.reset()
    model, tokens = WithCache(), routed_tokens()
    ours, theirs = torch.zeros(4, 4), torch.zeros(4, 4)
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        for step in (2, 3, 4):
            got = compiled(*tokens, ours, ours[:2], step)
            assert_close(got, model(*tokens, theirs, theirs[:2], step), rtol=0, atol=1e-5)
    assert_close(ours, theirs)
    assert {report.path for report in reports} == {"experts"}
    assert {report.status for report in reports} == {"rewritten"}
