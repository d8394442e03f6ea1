"""Programs that generate text: they skip as the attached model does, without its code."""

import subprocess
import sys

import pytest
import torch

from modes_fx import SkipPolicy, attach, detach, modes_backend
from modes_fx.attach import find_expert_modules
from modes_fx.bench.demo_model import encode, heldout_questions, load_model
from modes_fx.export.components import export_components, prompt_inputs
from modes_fx.export.errors import ExportError
from modes_fx.export.runner import Runner
from tests.tiny import chat, left_padded, tiny_vlm

KEEP_ALL, SKIP = 0.0, 0.5
EXPERTS = torch.ops.modes_fx.experts.default
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


def first_logits(runner, inputs):
    with torch.inference_mode():
        logits, _ = runner._prefill(runner.interface.arrange(inputs), [])
    return logits


def two_prompts(text: int, seed: int):
    return left_padded(chat(text, images=1, seed=seed), chat(text + 3, images=1, seed=seed + 1))


@pytest.fixture(scope="module")
def model():
    return tiny_vlm()


@pytest.fixture(scope="module", params=["plain", "kept mass, min_k"])
def exported(request, model, tmp_path_factory):
    options = {} if request.param == "plain" else {"kept_mass_exponent": 0.5, "min_k": 1}
    policy = policy_for(model, 0.4, **options)
    components = export_components(model, policy, SKIP, two_prompts(5, seed=0))
    folder = tmp_path_factory.mktemp("programs")
    components.save(folder)
    return policy, components, folder


def test_an_attached_model_is_refused():
    model = tiny_vlm()
    attach(model)
    with pytest.raises(ExportError, match="detach"):
        export_components(model, policy_for(model, 0.4), SKIP, two_prompts(5, seed=0))


def test_embeddings_alone_are_refused():
    with pytest.raises(ExportError, match="input_ids"):
        prompt_inputs(tiny_vlm(), {"inputs_embeds": torch.zeros(1, 2, 32)})


@pytest.mark.slow
def test_no_original_experts_are_left(exported):
    _, components, _ = exported
    for program in (components.prefill, components.decode):
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count(str(EXPERTS)) == 2
        assert not [target for target in targets if "grouped_mm" in target]


@pytest.mark.slow
def test_prefill_computes_what_the_attached_model_does_at_new_sizes(exported, model):
    policy, _, folder = exported
    given = prompt_inputs(model, two_prompts(9, seed=7))
    logits = first_logits(Runner(folder), given)
    call = {**given, "logits_to_keep": 1}
    expected = gated(model, policy, SKIP, lambda: model(**call).logits)
    every_expert = model(**call).logits
    scale = expected.abs().max()
    assert (logits - expected).abs().max() <= 1e-4 * scale
    assert (logits - every_expert).abs().max() > 1e-2 * scale


@pytest.mark.slow
def test_tokens_are_those_that_the_attached_model_generates(exported, model):
    policy, _, folder = exported
    inputs = two_prompts(9, seed=7)
    tokens = Runner(folder).generate(prompt_inputs(model, inputs), NEW_TOKENS)
    assert tokens.tolist() == gated(model, policy, SKIP, lambda: generated(model, inputs))


@pytest.mark.slow
def test_a_fresh_process_runs_it_without_the_code_of_the_model(exported, model, tmp_path):
    _, _, folder = exported
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
@pytest.mark.parametrize("target", [KEEP_ALL, SKIP])
def test_the_demo_model_answers_questions_about_images_as_generate_does(target, tmp_path):
    model, processor = load_model()
    policy = policy_for(model, 0.16)
    with_one = [q for q in heldout_questions(2) if len(q.images) == 1]
    example, other = encode(processor, with_one[0:4:3]), encode(processor, with_one[1:7:5])
    export_components(model, policy, target, example).save(tmp_path)
    end = processor.tokenizer.eos_token_id
    tokens = Runner(tmp_path).generate(prompt_inputs(model, other), NEW_TOKENS, stop=[end])
    options = {"pad_token_id": end, "eos_token_id": end}
    expected = gated(model, policy, target, lambda: generated(model, other, **options))
    assert tokens.tolist() == expected
    if target == KEEP_ALL:
        assert expected == generated(model, other, **options)
