"""attach(prepack=True): the experts as panels, each weight once, until detach gives all back."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import modes_fx
from modes_fx import modes_backend
from modes_fx.attach import attached, find_expert_modules, keep_all_theta, set_thetas
from modes_fx.bench.coverage.inputs import tiny_inputs
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.vocabulary import Modality
from tests.blocks import IndexAddLoop, Routed, TinyModel, prompt
from tests.oracle import codes_of, eager_oracle, middle_threshold

TYPES = ("qwen3_vl_moe", "gpt_oss", "dbrx", "longcat_flash")


@pytest.fixture(autouse=True)
def inference():
    torch.compiler.reset()
    with torch.no_grad():
        yield


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend=modes_backend, options={"compiler": "eager"})


def close(got, expected) -> None:
    assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_packed_model_computes_the_same_and_detach_gives_it_back(model_type) -> None:
    model = tiny_model(model_type)
    inputs = tiny_inputs(model, image=False).prefill
    expected = model(**inputs).logits
    parameters = dict(model.named_parameters())
    values = {name: value.clone() for name, value in parameters.items()}

    modes_fx.attach(model, prepack=True)
    experts = find_expert_modules(model).values()
    assert all(sum(p.is_meta for p in layer.parameters()) >= 2 for layer in experts)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: value.shape for name, value in values.items()
    }
    close(compiled(model)(**inputs).logits, expected)

    modes_fx.detach(model)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, values[name])
    close(model(**inputs).logits, expected)


def test_a_packed_model_skips_what_the_oracle_skips() -> None:
    model, pristine = tiny_model("qwen3_vl_moe"), tiny_model("qwen3_vl_moe")
    call = tiny_inputs(model, image=True).prefill
    theta = keep_all_theta()
    theta[Modality.TEXT] = middle_threshold(pristine, call, 0.5)
    modes_fx.attach(model, prepack=True, count_pairs=True)
    thetas = dict.fromkeys(find_expert_modules(model), theta)
    set_thetas(model, thetas)
    got = compiled(model)(**call).logits
    with eager_oracle(pristine, thetas, codes_of(call)):
        close(got, pristine(**call).logits)
    counts = sum(modes_fx.pair_counts(model).values())
    assert 0 < counts[Modality.TEXT, 1] < counts[Modality.TEXT, 0]


def test_a_bfloat16_model_is_packed_in_pairs() -> None:
    model = tiny_model("qwen3_vl_moe").bfloat16()
    inputs = tiny_inputs(model, image=False).prefill
    expected = model(**inputs).logits
    modes_fx.attach(model, prepack=True)
    assert_close(compiled(model)(**inputs).logits, expected, rtol=0.05, atol=0.05)


def test_layers_that_cannot_be_packed_are_named_and_still_run() -> None:
    model = TinyModel(Routed(IndexAddLoop()))  # its experts are 12 columns wide
    expected = model(**prompt())
    with pytest.warns(UserWarning, match=r"1 layers keep their weights .* layer\.experts: "):
        modes_fx.attach(model, prepack=True)
    close(compiled(model)(**prompt()), expected)


def test_the_model_cannot_be_changed_while_it_is_packed() -> None:
    model = tiny_model("qwen3_vl_moe")
    inputs = tiny_inputs(model, image=False).prefill
    modes_fx.attach(model, prepack=True)
    model.bfloat16()
    with pytest.raises(RuntimeError, match="was changed while its weights are packed: detach"):
        model(**inputs)


def test_a_call_that_was_not_proved_is_an_error() -> None:
    model = tiny_model("qwen3_vl_moe")
    modes_fx.attach(model, prepack=True)
    (experts, *_) = find_expert_modules(model).values()
    assert attached(model).loops
    x = torch.randn(1, 2, 3, 64)
    with pytest.raises(RuntimeError, match="attach without prepack=True"):
        experts(x, torch.zeros(6, 2, dtype=torch.long), torch.ones(6, 2))


def test_memory_holds_every_weight_once_and_the_one_in_work_twice() -> None:
    source = """
        import resource, warnings
        import torch
        from torch import nn
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
        import modes_fx

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        class Layers(nn.Module):
            def __init__(self):
                super().__init__()
                sizes = dict(hidden_size=512, moe_intermediate_size=512, num_experts=32)
                config = Qwen3MoeConfig(**sizes, num_experts_per_tok=2)
                self.layers = nn.ModuleList(Qwen3MoeExperts(config) for _ in range(6))

            def forward(self, input_ids):
                return input_ids

        model = Layers().bfloat16().eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.02)
        modes_fx.detach(modes_fx.attach(model))
        before, layer = peak(), sum(p.nbytes for p in model.layers[0].parameters())
        modes_fx.attach(model, prepack=True)
        print((peak() - before) / layer)
    """
    out = subprocess.check_output([sys.executable, "-c", textwrap.dedent(source)], text=True)
    assert float(out) < 1.5
