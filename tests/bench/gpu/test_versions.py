"""Compiling with several Tritons, in processes of their own."""

from importlib import metadata

import pytest

from modes_fx.bench.gpu import versions
from modes_fx.bench.gpu.compilation import Compilation


def test_a_process_that_fails_says_why(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MODES_FX_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"compiling for sm_1 failed:\n(?s:.*)KeyError: 'sm_1'"):
        versions.compile_with(None, ["sm_1"], workers=1)


def test_parts_of_one_triton_are_joined_and_of_two_refused() -> None:
    parts = [Compilation(triton="3.9.0", entries=[]) for _ in range(2)]
    assert versions.merged(parts).triton == "3.9.0"
    with pytest.raises(ValueError, match=r"different Tritons: 3\.7\.1, 3\.9\.0"):
        versions.merged([parts[0], Compilation(triton="3.7.1", entries=[])])


def test_the_triton_that_is_installed_needs_no_folder(tmp_path) -> None:
    assert versions.folder_of(metadata.version("triton"), tmp_path) is None


def test_another_triton_is_installed_once_into_a_folder_of_its_own(tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(versions.subprocess, "run", lambda command, check: asked.append(command))
    folder = versions.folder_of("3.6.9", tmp_path)
    assert folder == tmp_path / "triton-3.6.9"
    assert asked[0][-4:] == ["--no-deps", "--target", str(folder), "--quiet"]
    (folder / "triton").mkdir(parents=True)
    versions.folder_of("3.6.9", tmp_path)
    assert len(asked) == 1
