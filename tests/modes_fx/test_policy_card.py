"""The card of a policy: what a reader of its folder or hub page is told."""

import pytest
from huggingface_hub import ModelCard

from modes_fx.policy import SkipPolicy
from modes_fx.policy_card import policy_card
from modes_fx.policy_fields import Provenance, Reached
from modes_fx.policy_file import CARD_FILE, CARD_MARKER

LAYER = "model.layers.0.experts"


def policy(**options) -> SkipPolicy:
    fields = {
        "alpha": {LAYER: {"text": 0.5, "vision": 0.0}},
        "tau": {0.75: {"text": 0.2, "vision": 0.1}, 0.5: {"text": 0.1}},
        "model_id": "org/model",
        "provenance": Provenance(
            data="digits | of\nmine",
            samples=7,
            versions={"torch": "2.13.0"},
            reached={
                0.5: Reached(kl=0.0125, skip_ratio=0.51, skip_ratio_by_modality={"text": 0.6})
            },
        ),
    }
    return SkipPolicy(**{**fields, **options})


def rows(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("|")]


def test_its_metadata_is_what_a_hub_reads() -> None:
    data = ModelCard(policy_card(policy(), "user/policy")).data.to_dict()
    assert data["base_model"] == "org/model"
    assert data["library_name"] == "modes-fx"
    assert "mixture-of-experts" in data["tags"]


@pytest.mark.parametrize("model_id", [None, "checkpoint"])
def test_only_a_hub_id_is_a_base_model(model_id) -> None:
    card = ModelCard(policy_card(policy(model_id=model_id), "user/policy"))
    assert "base_model" not in card.data.to_dict()


def test_targets_are_rows_with_what_was_reached() -> None:
    assert rows(policy_card(policy(), "x"))[2:4] == [
        "| 0.5 | 0.1 | - | 51.0% | 60.0% | - | 0.0125 |",
        "| 0.75 | 0.2 | 0.1 | - | - | - | - |",
    ]


def test_layers_are_rows_with_their_thresholds() -> None:
    expected = f"| `{LAYER}` | 0.5 / 0 | 0.2 / keeps all | 0.4 / skips all |"
    assert expected in rows(policy_card(policy(), "x"))


def test_tables_are_whole() -> None:
    """No blank line or stray bar cuts a table: each row has the cells of its heading."""
    for block in policy_card(policy(), "x").split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
            assert len(block.splitlines()) >= 3
    assert "| data | digits \\| of mine |" in rows(policy_card(policy(), "x"))


def test_it_says_how_to_use_it() -> None:
    card = policy_card(policy(), "user/policy")
    assert 'from_pretrained("user/policy")' in card
    assert "attach(model, policy, target=0.75)" in card
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")


def test_a_policy_without_targets_has_a_card() -> None:
    card = policy_card(policy(tau={}), "x")
    assert "keeps every expert" in card
    assert "attach(model, policy)" in card


def test_it_is_saved_with_the_policy_where_it_is_wanted(tmp_path) -> None:
    policy().save_pretrained(tmp_path / "with")
    policy().save_pretrained(tmp_path / "without", card=False)
    assert CARD_MARKER in (tmp_path / "with" / CARD_FILE).read_text(encoding="utf-8")
    assert not (tmp_path / "without" / CARD_FILE).exists()
    assert SkipPolicy.from_pretrained(tmp_path / "with") == policy()
