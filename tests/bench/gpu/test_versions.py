"""Compiling with several Tritons, in processes of their own."""

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
