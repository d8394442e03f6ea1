"""modes-fx explain: a table or JSON of what becomes of a saved model's layers."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from modes_fx.cli import app
from modes_fx.cli.explain import collapse
from modes_fx.passes import pipeline
from tests.tiny import tiny_vlm


def run(*arguments: str):
    return CliRunner().invoke(app, ["explain", *arguments])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_vlm(layers=2).save_pretrained(folder)
    return str(folder)


def test_json_goes_to_standard_output_alone(saved):
    result = run(saved, "--json", "--strict")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["model"] == saved
    assert document["inputs"]["text"]["matched"] == 2
    assert "tokenizer" in document["notes"][0]


def test_the_table_shows_layers_that_are_alike_in_one_row(saved):
    result = run(saved)
    assert result.exit_code == 0
    assert "2 of 2 MoE layers rewritten" in result.stdout
    assert "[0-1]" in result.stdout
    assert "note: " in result.stdout


def test_strict_fails_where_a_layer_is_left_alone(saved, monkeypatch):
    monkeypatch.setattr(pipeline, "PATTERNS", ())
    result = run(saved, "--strict")
    assert "refused" in result.stdout
    output = " ".join(result.stdout.split())
    assert "layers.[0-1].mlp.experts: no GEMM over stacked expert weights" in output
    assert "no pattern applies, failed at: find" in output
    assert result.exit_code == 1


def test_a_model_without_moe_layers_is_a_clear_error(tmp_path):
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert "has no MoE layer" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["layers.0.mlp", "layers.1.mlp", "layers.2.mlp", "layers.5.mlp"], "layers.[0-2,5].mlp"),
        (["layers.3.mlp"], "layers.3.mlp"),
        (["a.0.b.0", "a.1.b.1"], "a.0.b.0, a.1.b.1"),
        (["encoder.mlp", "decoder.mlp"], "encoder.mlp, decoder.mlp"),
        (["mlp", "layers.0.mlp"], "mlp, layers.0.mlp"),
    ],
)
def test_paths_that_differ_in_one_number_are_collapsed(paths, short):
    assert collapse(paths) == short


def test_config_only_needs_no_weights(saved, tmp_path):
    config = Path(saved, "config.json").read_text()
    tmp_path.joinpath("config.json").write_text(config)
    result = run(str(tmp_path), "--config-only", "--strict", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)["inputs"]["text"]
    assert (report["matched"], report["unverified"]) == (0, 2)
    assert report["layers"][0]["router_weight"].endswith("layers.0.mlp.gate.weight")


def test_a_call_that_needs_weights_is_named():
    result = run("demo", "--config-only", "--json")
    document = json.loads(result.stdout)
    assert document["inputs"]["text"]["unverified"] == 8
    assert "run without --config-only" in document["notes"][0]


def test_a_model_that_cannot_be_called_without_weights_is_a_clear_error(tmp_path):
    config = tiny_vlm(layers=1).config
    config.save_pretrained(tmp_path)
    document = json.loads(tmp_path.joinpath("config.json").read_text())
    document["experts_implementation"] = "eager"
    tmp_path.joinpath("config.json").write_text(json.dumps(document))
    result = run(str(tmp_path), "--config-only", "--strict")
    assert result.exit_code == 2
    assert "run without --config-only" in result.stderr
