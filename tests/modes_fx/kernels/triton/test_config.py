"""Configurations: shipped files are whole, tuned ones come first, the policy guides the choice."""

import json

import pytest
import torch
import triton

from modes_fx.kernels.triton import config
from modes_fx.kernels.triton.config import SHIPPED, ConfigError, Configurations, Shape

SHAPE = Shape(experts=128, hidden=2048, intermediate=768, streams=2, dtype="bfloat16")


@pytest.fixture
def expectation():
    yield config.expect_skip_ratio
    config.expect_skip_ratio(0.0)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_cover_any_number_of_rows_and_both_layouts(path) -> None:
    read = config.read(path)
    assert read.origin == "computed"
    assert {rule.contiguous for rule in read.decode} == {"k", "n"}
    for rules in (read.prefill, read.prefill_float32):
        bounds = [rule.up_to_rows for rule in rules]
        assert bounds[-1] is None
        assert bounds[:-1] == sorted(bounds[:-1])


def test_few_rows_take_low_tiles() -> None:
    chosen = config.choose("sm_90", SHAPE)
    heights = [chosen.for_rows(rows, torch.bfloat16).up.block_m for rows in (1, 16, 40, 90, 5000)]
    assert heights == [16, 16, 32, 64, 128]
    assert chosen.for_rows(5000, torch.float32).up.block_m == 64


def test_targets_without_a_file_take_their_familys() -> None:
    assert config.choose("sm_86", SHAPE).device == "cuda"
    assert config.choose("gfx1100", SHAPE).device == "hip"


def test_rows_are_those_the_policy_leaves(expectation) -> None:
    assert config.expected_rows(4096, 8, 128) == 256
    expectation(0.875)
    assert config.expected_rows(4096, 8, 128) == 32
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        expectation(2)


def test_a_tuned_file_comes_first() -> None:
    shipped = config.choose("sm_90", SHAPE)
    update = {"origin": "tuned", "device": "A GPU", "shape": SHAPE, "triton": triton.__version__}
    tuned = shipped.model_copy(update=update)
    path = config.tuned_path("A GPU", SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tuned.model_dump_json())
    assert config.choose("sm_90", SHAPE, "A GPU").origin == "tuned"
    assert config.choose("sm_90", SHAPE, "Another GPU").origin == "computed"


def test_a_file_tuned_with_another_triton_is_used_with_a_warning() -> None:
    shipped = config.choose("sm_90", SHAPE)
    tuned = shipped.model_copy(update={"origin": "tuned", "shape": SHAPE, "triton": "1.0"})
    path = config.tuned_path("An old GPU", SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tuned.model_dump_json())
    with pytest.warns(UserWarning, match=r"tuned with triton 1\.0, and .* Run modes-fx tune"):
        assert config.choose("sm_90", SHAPE, "An old GPU").origin == "tuned"


@pytest.mark.parametrize("change", [{"version": 2}, {"unknown": 1}, {"prefill": []}])
def test_a_file_that_cannot_be_read_says_what_is_wrong(change, tmp_path) -> None:
    document = json.loads((SHIPPED / "cuda.json").read_text()) | change
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=rf"(?s){next(iter(change))}.*modes-fx tune"):
        config.read.__wrapped__(path)


def test_both_gemms_take_tiles_of_as_many_rows() -> None:
    document = json.loads((SHIPPED / "cuda.json").read_text())
    document["prefill"][0]["up"]["block_m"] = 32
    with pytest.raises(ValueError, match="as many rows, got 32 and 16"):
        Configurations.model_validate(document)
