"""Programs that generate text: they skip as the attached model does, without its code."""

import subprocess
import sys

import pytest
import torch

from modes_fx import SkipPolicy, attach, detach, modes_backend
from modes_fx.attach import find_expert_modules
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.bench.demo_model import encode, heldout_questions, load_model
from modes_fx.export import ExportError, Manifest, export, verify
from modes_fx.export.calls import DECODE, PREFILL
from modes_fx.export.components import prompt_inputs
from modes_fx.export.manifest import versions
from modes_fx.export.runner import Runner
from tests.tiny import chat, left_padded, tiny_vlm

KEEP_ALL, SKIP = 0.0, 0.5
NEW_TOKENS = 6


def policy_for(model, tau: float, **options) -> SkipPolicy:
    layers = find_expert_modules(model)
    return SkipPolicy(
        alpha={path: {"text": 1.0, "vision": 1.0} for path in layers},
        tau={KEEP_ALL: {"text": 0.0, "vision": 0.0}, SKIP: {"text": tau, "vision": 1.2 * tau}},
        **options,
    )


def gated(model, policy, target, call):
    """What ``call`` returns while the model is attached and compiled."""
    attach(model, policy, target=target)
    try:
        torch.compiler.reset()
        model.compile(backend=modes_backend, options={"compiler": "eager"})
        with torch.inference_mode():
            return call()
    finally:
        model._compiled_call_impl = None
        detach(model)


def generated(model, inputs, **options):
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


def two_prompts(text: int, seed: int):
    return left_padded(chat(text, images=1, seed=seed), chat(text + 3, images=1, seed=seed + 1))


@pytest.fixture(scope="module")
def model():
    return tiny_vlm()


@pytest.fixture(scope="module", params=["pt2", "onnx"])
def artifact(request, model, tmp_path_factory):
    options = {"kept_mass_exponent": 0.5, "min_k": 1} if request.param == "onnx" else {}
    policy = policy_for(model, 0.4, **options)
    folder = tmp_path_factory.mktemp("programs") / "artifact"
    prompts = two_prompts(5, seed=0)
    calls = {PREFILL: prompts, DECODE: prompts}
    manifest = export(model, policy, SKIP, calls, folder, format=request.param)
    return policy, manifest, folder


def test_an_attached_model_is_refused(tmp_path) -> None:
    model = tiny_vlm()
    policy = policy_for(model, 0.4)
    attach(model)
    with pytest.raises(ExportError, match="detach"):
        export(model, policy, SKIP, {PREFILL: two_prompts(5, seed=0)}, tmp_path / "out")


def test_embeddings_alone_are_refused() -> None:
    with pytest.raises(ExportError, match="input_ids"):
        prompt_inputs(tiny_vlm(), {"inputs_embeds": torch.zeros(1, 2, 32)})


def test_one_component_is_not_enough_to_generate(model, tmp_path) -> None:
    manifest = Manifest(
        format="pt2",
        model="tiny",
        model_config_hash="0" * 64,
        dtype="float32",
        target=SKIP,
        policy_sha256="0" * 64,
        details={},
        versions=versions(),
        tolerance=1e-4,
        components={},
        files={},
    )
    manifest.save(tmp_path)
    with pytest.raises(ExportError, match="has no component prefill: export prefill and decode"):
        Runner(tmp_path)


@pytest.mark.slow
def test_the_cache_goes_from_prefill_to_decode(artifact) -> None:
    _, manifest, _ = artifact
    names = [value.name for value in manifest.components[PREFILL].outputs]
    assert names == [
        "logits",
        *(f"present_{i}_{kind}" for i in (0, 1) for kind in ("key", "value")),
    ]
    taken = [value.name for value in manifest.components[DECODE].inputs]
    assert taken[3:] == [name.replace("present", "past") for name in names[1:]]
    assert {one.rewritten for one in manifest.components.values()} == {2}


@pytest.mark.slow
def test_both_agree_with_the_attached_model_at_new_sizes(artifact, model) -> None:
    _, _, folder = artifact
    prompts = [two_prompts(9, seed=7)]
    checks = verify(folder, model, {PREFILL: prompts, DECODE: prompts})
    assert [check.agrees for check in checks] == [True, True]


@pytest.mark.slow
def test_tokens_are_those_that_the_attached_model_generates(artifact, model) -> None:
    policy, _, folder = artifact
    inputs = two_prompts(9, seed=7)
    tokens = Runner(folder).generate(prompt_inputs(model, inputs), NEW_TOKENS)
    assert tokens.tolist() == gated(model, policy, SKIP, lambda: generated(model, inputs))


@pytest.mark.slow
def test_a_fresh_process_runs_it_without_the_code_of_the_model(artifact, model, tmp_path) -> None:
    _, _, folder = artifact
    given = prompt_inputs(model, two_prompts(9, seed=7))
    torch.save(given, tmp_path / "inputs.pt")
    code = f"""
import sys
from pathlib import Path
import torch
from modes_fx.export.runner import Runner
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
print(Runner(Path({str(folder)!r})).generate(inputs, {NEW_TOKENS}).tolist())
print([name for name in sys.modules if ".modeling_" in name and ".models." in name])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tokens = Runner(folder).generate(given, NEW_TOKENS).tolist()
    assert run.stdout.splitlines()[-2:] == [str(tokens), "[]"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_beyond_a_sliding_window_tokens_are_those_of_generate(tmp_path) -> None:
    model = tiny_model("gpt_oss")
    assert model.config.sliding_window == 8
    policy = policy_for(model, 0.4)
    ids = torch.arange(1, 25).view(2, 12)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    folder = tmp_path / "artifact"
    export(model, policy, SKIP, {PREFILL: prompt, DECODE: prompt}, folder)
    tokens = Runner(folder).generate(prompt, NEW_TOKENS)
    assert tokens.tolist() == gated(model, policy, SKIP, lambda: generated(model, prompt))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", [KEEP_ALL, SKIP])
def test_the_demo_model_answers_questions_about_images_as_generate_does(target, tmp_path) -> None:
    model, processor = load_model()
    policy = policy_for(model, 0.16)
    with_one = [q for q in heldout_questions(2) if len(q.images) == 1]
    example, other = encode(processor, with_one[0:4:3]), encode(processor, with_one[1:7:5])
    folder = tmp_path / "artifact"
    export(model, policy, target, {PREFILL: example, DECODE: example}, folder)
    end = processor.tokenizer.eos_token_id
    tokens = Runner(folder).generate(prompt_inputs(model, other), NEW_TOKENS, stop=[end])
    options = {"pad_token_id": end, "eos_token_id": end}
    expected = gated(model, policy, target, lambda: generated(model, other, **options))
    assert tokens.tolist() == expected
    if target == KEEP_ALL:
        assert expected == generated(model, other, **options)
