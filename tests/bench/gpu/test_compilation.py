"""Compiling without a GPU: what is compiled, what must hold, and that a failure is one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from modes_fx.bench.gpu.compilation import calls_of, check, dtypes_of
from modes_fx.bench.gpu.shapes import LAYERS
from modes_fx.bench.gpu.targets import TARGETS, Compiled

GOOD = Compiled(
    registers=128, spilled=0, shared=1000, tensor_cores=8, wide_loads=4, instructions=500
)


@pytest.mark.parametrize("target", TARGETS)
def test_every_shipped_configuration_is_compiled(target) -> None:
    layer = next(iter(LAYERS.values()))
    for dtype in dtypes_of(layer, target):
        launches = [[call.name for call in calls] for _, calls in calls_of(layer, dtype, target)]
        prefill = ["gate_tokens", "count_blocks", "place_blocks", "up_gemm", "down_gemm"]
        small = ["gate_tokens", "sort_pairs", "up_gemm", "down_gemm", "sum_pairs"]
        assert launches[0] == ["gate_tokens", "decode_up", "decode_down"]
        assert all(names == [*prefill, "sum_pairs"] for names in launches[1:-1])
        assert launches[-1] == small
        assert len(launches) >= 5


@pytest.mark.parametrize(
    ("kernel", "dtype", "change", "failure"),
    [
        ("up_gemm", torch.bfloat16, {}, None),
        ("up_gemm", torch.bfloat16, {"tensor_cores": 0}, "no tensor-core instruction"),
        ("up_gemm", torch.float32, {"tensor_cores": 0}, None),
        ("sum_pairs", torch.bfloat16, {"tensor_cores": 0}, None),
        ("decode_up", torch.bfloat16, {"wide_loads": 0}, "no 128-bit load"),
        ("decode_up", torch.float8_e4m3fn, {"wide_loads": 0}, None),
        ("gate_tokens", torch.bfloat16, {"spilled": 8}, "8 bytes of registers are spilled"),
        ("down_gemm", torch.bfloat16, {"shared": 170000}, "166912 exist"),
        ("down_gemm", torch.bfloat16, {"shared": 5000}, "4000 were predicted"),
    ],
)
def test_what_must_hold(kernel, dtype, change, failure) -> None:
    found = check(kernel, dtype, GOOD.model_copy(update=change), "sm_80", need=4000)
    expected = [] if failure is None else [text for text in found if failure in text]
    assert found[-1:] == expected[-1:]
    assert bool(found) == (failure is not None)


PROGRAM = """
from modes_fx.bench.gpu.targets import compile_call
from modes_fx.kernels.triton.offline import compiling_for
from modes_fx.bench.gpu.compilation import calls_of
from modes_fx.bench.gpu.shapes import Layer
import torch
layer = Layer("small", experts=8, top_k=2, hidden=256, intermediate=128, form="gated")
for target in ("sm_90", "gfx942"):
    with compiling_for(target):
        _, (rule, calls) = [*calls_of(layer, torch.bfloat16, target)][:2]
        (up,) = [call for call in calls if call.name == "up_gemm"]
        print(compile_call(up, target).model_dump_json())
"""


def test_a_kernel_is_compiled_for_devices_that_are_not_there(tmp_path) -> None:
    """In a process of its own: here kernels are interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        compiled = json.loads(line)
        assert compiled["tensor_cores"] > 0
        assert compiled["spilled"] == 0
        assert compiled["shared"] > 0
        assert compiled["registers"] > 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted")
def test_interpreted_kernels_are_not_compiled() -> None:
    from modes_fx.kernels.triton.offline import compiling_for

    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"), compiling_for("sm_90"):
        pass
