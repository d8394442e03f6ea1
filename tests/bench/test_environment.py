"""What is said of the machine is what the system tells."""

import pytest
import torch

from modes_fx.bench import environment
from modes_fx.bench.environment import describe, describe_environment, last_level_cache
from modes_fx.bench.threads import torch_threads


def test_it_names_the_processor_and_the_libraries():
    line = describe(describe_environment())
    assert describe_environment().processor in line
    assert f"torch {torch.__version__}" in line


def test_threads_are_those_of_now():
    with torch_threads(2):
        assert describe_environment().threads == 2


@pytest.mark.parametrize(
    ("size", "expected"), [("32768K", 32 * 2**20), ("2M", 2**21), ("512", 512)]
)
def test_the_last_level_is_the_largest(monkeypatch, tmp_path, size, expected):
    for level, text in ((1, "32K"), (3, size), (2, "1024K")):
        folder = tmp_path / f"index{level}"
        folder.mkdir()
        folder.joinpath("level").write_text(f"{level}\n")
        folder.joinpath("size").write_text(f"{text}\n")
    monkeypatch.setattr(environment, "CACHES", tmp_path)
    assert last_level_cache() == expected


def test_where_the_system_does_not_tell_the_option_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "CACHES", tmp_path)
    with pytest.raises(ValueError, match="--cache-mib"):
        last_level_cache()
