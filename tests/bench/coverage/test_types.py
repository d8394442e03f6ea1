"""Mixture-of-experts types are found by inspection."""

import pytest

from modes_fx.bench.coverage.types import COMBINATIONS, head_of, moe_types


@pytest.fixture(scope="module")
def types() -> list[str]:
    return moe_types()


@pytest.mark.parametrize(
    "known",
    [
        pytest.param("qwen3_vl_moe", id="behind the registry"),
        pytest.param("llama4", id="outside the registry"),
        pytest.param("kimi_k25", id="with another type's text model"),
        pytest.param("internvl+gpt_oss", id="with a text model of choice"),
    ],
)
def test_types_with_experts_are_found(types, known):
    assert known in types


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("llama", id="no experts"),
        pytest.param("qwen3_vl_moe_vision", id="a part of another type"),
        pytest.param("internvl", id="no experts by default"),
    ],
)
def test_other_types_are_not(types, other):
    assert other not in types


def test_a_combination_consists_of_a_type_that_has_a_head_and_one_with_experts(types):
    for combination in COMBINATIONS:
        outer, _, inner = combination.partition("+")
        assert head_of(outer) == "AutoModelForImageTextToText"
        assert inner in types
