"""In an encoder-decoder, every layer is told the modality of the tokens it sees."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.modeling_outputs import MoeModelOutputWithPast

import modes_fx
from modes_fx import Modality
from tests.tiny import compile_observed

PROMPT, ANSWER, PAD = 6, 3, 0


@pytest.fixture
def model():
    torch.manual_seed(0)
    torch.compiler.reset()
    config = SwitchTransformersConfig(
        vocab_size=32,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_heads=2,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_experts=4,
        pad_token_id=PAD,
    )
    model = SwitchTransformersForConditionalGeneration(config).eval()
    return modes_fx.attach(model, count_pairs=True)


def tokens_by_layer(model: nn.Module) -> dict[str, dict[str, int]]:
    """The tokens that each half of the model computed experts for, by modality."""
    return {
        path.partition(".")[0]: {code.label: int(n) for code in Modality if (n := count[code, 0])}
        for path, count in modes_fx.pair_counts(model, reset=True).items()
    }


def test_encoder_and_decoder_each_know_their_own_tokens(model) -> None:
    prompt, answer = torch.arange(1, 1 + PROMPT)[None], torch.arange(9, 9 + ANSWER)[None]
    mask = torch.tensor([[0, 0, *[1] * (PROMPT - 2)]])
    compiled, reports = compile_observed(model)
    with torch.no_grad():
        output = compiled(input_ids=prompt, attention_mask=mask, decoder_input_ids=answer)
    assert [report.status for report in reports] == ["rewritten"] * len(reports)
    assert tokens_by_layer(model) == {
        "encoder": {"text": PROMPT - 2, "padding": 2},
        "decoder": {"text": ANSWER},
    }
    modes_fx.detach(model)
    with torch.no_grad():
        original = model(input_ids=prompt, attention_mask=mask, decoder_input_ids=answer)
    assert_close(output.logits, original.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error:the model was called without input_ids")
def test_a_step_after_the_encoder_ran_knows_its_tokens(model) -> None:
    encoded = MoeModelOutputWithPast(last_hidden_state=torch.randn(1, PROMPT, 16))
    compiled, _ = compile_observed(model)
    with torch.no_grad():
        compiled(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[7]]))
    assert tokens_by_layer(model) == {"encoder": {}, "decoder": {"text": 1}}
