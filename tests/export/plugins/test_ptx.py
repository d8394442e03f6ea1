"""Kernels of plugins as PTX, for GPUs that are not there."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from modes_fx.export.plugins.ptx import keep_parameters

PTX = """
.version 8.7
.visible .entry plugin_up(
	.param .u64 .ptr .global .align 1 plugin_up_param_0,
	.param .u64 .ptr .global .align 1 plugin_up_param_1,
	.param .u64 .ptr .global .align 1 plugin_up_param_2
)
.reqntid 128
{
	ld.param.b64 	%rd1, [plugin_up_param_0];
	ld.param.b64 	%rd2, [plugin_up_param_1];
	ret;
}
"""


def test_parameters_that_nothing_reads_are_taken_out() -> None:
    entry, ptx = keep_parameters(PTX, 2)
    assert entry == "plugin_up"
    assert "plugin_up_param_1\n)" in ptx
    assert "plugin_up_param_2" not in ptx
    assert ptx.partition(")")[2] == PTX.partition(")")[2]


def test_a_parameter_that_is_read_stays_or_the_kernel_is_refused() -> None:
    with pytest.raises(RuntimeError, match="the parameter plugin_up_param_1, which TensorRT"):
        keep_parameters(PTX, 1)


def test_a_kernel_with_fewer_parameters_is_refused() -> None:
    with pytest.raises(RuntimeError, match="has 3 parameters in PTX, not 4"):
        keep_parameters(PTX, 4)


PROGRAM = """
import re
import subprocess
import tempfile
import torch
from triton.backends.nvidia.compiler import get_ptxas
from modes_fx.export.plugins.layer import plugins_of
from modes_fx.export.plugins.ptx import compile_plugin
from tests.modes_fx.kernels.triton.bodies import Sizes, problem

sizes = Sizes(T=3, K=2, E=4, H=128, I=96)
for name in ("swiglu", "clamped_interleaved", "two_products_weighted_input"):
    for target in ("sm_80", "sm_89", "sm_120"):
        given = problem(name, sizes, torch.bfloat16, torch.device("cpu"))
        arguments = (given.params, given.body.to_json(), sizes.E, sizes.K, target)
        up, down = plugins_of(given.x, given.weight, *arguments)
        index, rows = given.index.int(), given.x
        for plugin in (up, down):
            inputs = (rows, given.weight, index, *(given.params[i] for i in plugin.params))
            code = compile_plugin(plugin, inputs, target)
            assert code.ptx.count(".param .u64") == len(inputs) + 1, code.ptx
            with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                file.write(code.ptx)
                file.flush()
                ptxas = get_ptxas(int(target.removeprefix("sm_"))).path
                (gpu,) = re.findall(r"^\\.target (\\w+)", code.ptx, re.M)
                command = [ptxas, f"--gpu-name={gpu}", "-o", "/dev/null", file.name]
                subprocess.run(command, check=True)
            print(name, target, code.entry, code.threads, code.shared_bytes)
            rows = plugin.output(index)
"""


@pytest.mark.timeout(600)
def test_every_body_is_compiled_to_ptx_that_takes_its_pointers_alone(tmp_path) -> None:
    """In a process of its own: here kernels are interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[2] for line in lines} == {"plugin_up", "plugin_down"}
    assert len(lines) == 3 * 3 * 2
    assert all(int(threads) >= 32 for *_, threads, _ in lines)
