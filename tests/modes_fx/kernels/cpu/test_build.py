"""Shared objects are built once, whoever asks, and failures say what to do."""

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._inductor import config as inductor_config

from modes_fx.kernels.cpu import build
from modes_fx.kernels.cpu.build import BuildError, build_shared
from modes_fx.kernels.cpu.isa import AVX2, DEFAULT

ANSWER = 'extern "C" int answer() { return 42; }'


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_is_built_can_be_loaded_and_is_kept(monkeypatch) -> None:
    built = build_shared("answer", ANSWER, DEFAULT)
    assert ctypes.CDLL(str(built)).answer() == 42
    monkeypatch.setattr(build, "_run", lambda *_: pytest.fail("it was built again"))
    assert build_shared("answer", ANSWER, DEFAULT) == built


def test_every_source_and_instruction_set_has_a_file_of_its_own() -> None:
    files = {
        build_shared("answer", ANSWER, DEFAULT),
        build_shared("answer", ANSWER, AVX2),
        build_shared("answer", ANSWER.replace("42", "43"), DEFAULT),
    }
    assert len(files) == 3


def test_processes_that_ask_at_once_get_one_file(empty_cache) -> None:
    source = (
        "from modes_fx.kernels.cpu.build import build_shared\n"
        "from modes_fx.kernels.cpu.isa import DEFAULT\n"
        f"print(build_shared('answer', {ANSWER!r}, DEFAULT))"
    )
    ask = [sys.executable, "-c", source]
    with ThreadPoolExecutor() as pool:
        asked = pool.map(lambda _: subprocess.check_output(ask, text=True).strip(), range(2))
        files = set(asked)
    assert len(files) == 1
    assert [path.name for path in empty_cache.rglob("*.so")] == [files.pop().rpartition("/")[2]]


def test_a_source_that_fails_shows_what_the_compiler_says(empty_cache) -> None:
    with pytest.raises(BuildError, match=r"exit code 1[\s\S]*not_declared"):
        build_shared("wrong", "int x = not_declared;", DEFAULT)
    assert not list(empty_cache.rglob("*.so"))


def test_without_a_compiler_it_says_how_to_get_one() -> None:
    build._compiler.cache_clear()
    no_compiler = inductor_config.patch("cpp.cxx", ("/no/compiler",))
    with no_compiler, pytest.raises(BuildError, match="apt-get install g"):
        build_shared("answer", ANSWER, DEFAULT)
