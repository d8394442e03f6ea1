"""Find the fastest block sizes for a shape on the device at hand.

Every trial is written down as soon as it is timed, so a run that is interrupted goes on where it
was. A configuration whose result differs from the reference's is not taken, however fast.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
import triton
from pydantic import BaseModel
from torch import Tensor
from triton.errors import TritonError

from modes_fx.bench.gpu.routing import random_routing
from modes_fx.bench.gpu.shapes import Layer
from modes_fx.kernels import reference
from modes_fx.kernels.triton import launch
from modes_fx.kernels.triton.calls import Call, recorded
from modes_fx.kernels.triton.compaction import compact
from modes_fx.kernels.triton.config import (
    Configurations,
    GemmConfig,
    PrefillRule,
    choose,
    tuned_path,
)
from modes_fx.kernels.triton.problem import Problem, prepare

ROWS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Rows of an expert that are tried; a rule holds up to its number, the last one beyond."""
HEIGHTS = (16, 32, 64, 128)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}

TimeCall = Callable[[Call], float]
"""Milliseconds that one launch takes."""


class Trial(BaseModel):
    """One configuration of one GEMM.

    Attributes:
        rows: of an expert.
        stage: ``up`` or ``down``.
        gemm: the configuration.
        milliseconds: how long it took; None where it could not run or was wrong.
        failure: why not.
    """

    rows: float
    stage: str
    gemm: GemmConfig
    milliseconds: float | None = None
    failure: str = ""

    @property
    def key(self) -> str:
        """What makes it the same trial."""
        return f"{self.rows} {self.stage} {self.gemm.model_dump_json()}"


class Notebook:
    """The trials of a shape on a device, in a file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        """Read what was tried before; a line that was cut short is dropped."""
        self._path = path
        self._trials: dict[str, Trial] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                trial = Trial.model_validate(json.loads(line))
            except ValueError:
                continue
            self._trials[trial.key] = trial

    def __len__(self) -> int:
        """Return how many trials there are."""
        return len(self._trials)

    def __contains__(self, trial: Trial) -> bool:
        """Whether a trial was made before."""
        return trial.key in self._trials

    def add(self, trial: Trial) -> None:
        """Write a trial down."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(trial.model_dump_json() + "\n")
        self._trials[trial.key] = trial

    def fastest(self, rows: float) -> PrefillRule | None:
        """Return the fastest pair of configurations with tiles of one height; None without one."""
        best: tuple[float, GemmConfig, GemmConfig] | None = None
        for height in HEIGHTS:
            up, down = (self._fastest(rows, stage, height) for stage in ("up", "down"))
            if up is None or down is None:
                continue
            total = (up.milliseconds or 0) + (down.milliseconds or 0)
            if best is None or total < best[0]:
                best = (total, up.gemm, down.gemm)
        return None if best is None else PrefillRule(up_to_rows=rows, up=best[1], down=best[2])

    def _fastest(self, rows: float, stage: str, height: int) -> Trial | None:
        fitting = [
            trial
            for trial in self._trials.values()
            if (trial.rows, trial.stage, trial.gemm.block_m) == (rows, stage, height)
            and trial.milliseconds is not None
        ]
        return min(fitting, key=lambda trial: trial.milliseconds or 0, default=None)


def candidates(heights: Sequence[int] = HEIGHTS) -> Iterator[GemmConfig]:
    """Yield the configurations that are tried; what does not fit a device is left out later."""
    for block_m, block_n, block_k, warps, stages in product(
        heights, (64, 128, 256), (64, 128), (4, 8), (2, 3, 4)
    ):
        if block_m * block_n <= 128 * 256 and warps * 4096 >= block_m * block_n // 2:
            yield _gemm(block_m, block_n, block_k, warps, stages)


def _gemm(block_m: int, block_n: int, block_k: int, warps: int, stages: int) -> GemmConfig:
    return GemmConfig(
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        warps=warps,
        stages=stages,
        occupancy=1 if warps == 8 else 2,
    )


def tune(
    layer: Layer,
    dtype: torch.dtype,
    device: torch.device,
    notebook: Notebook,
    *,
    rows: Sequence[float] = ROWS,
    tried: Iterable[GemmConfig] | None = None,
    time_call: TimeCall | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Configurations:
    """Try configurations and return the fastest ones for every number of rows.

    Args:
        layer: the shape.
        dtype: of weights and rows.
        device: where.
        notebook: what was tried before, and where trials are written down.
        rows: numbers of rows of an expert.
        tried: the configurations; None for all of :func:`candidates`.
        time_call: how a launch is timed.
        on_trial: is told of each trial that was run.

    Raises:
        RuntimeError: no configuration computes the right result.
    """
    timing = time_call or time_on_device
    params = layer.params(dtype, device)
    for param in params:
        param.normal_(std=param.shape[-1] ** -0.5 if param.dim() == 3 else 0.1)
    configurations = list(candidates() if tried is None else tried)
    problem = None
    for number in rows:
        problem, exact = _problem(layer, params, dtype, device, number)
        for gemm in configurations:
            for trial in _untried(notebook, number, gemm):
                _run(trial, problem, exact, timing)
                notebook.add(trial)
                on_trial(trial)
    assert problem is not None
    rules = [rule for number in rows if (rule := notebook.fastest(number)) is not None]
    if not rules:
        raise RuntimeError(
            f"none of {len(configurations)} configurations computes {layer.name} right on this "
            "device: run make gpu-check and attach its report to an issue"
        )
    rules[-1] = rules[-1].model_copy(update={"up_to_rows": None})
    return _finished(problem, device, tuple(rules))


def time_on_device(call: Call) -> float:
    """Return the median milliseconds of a launch, with a cold cache before each."""
    median: float = triton.testing.do_bench(
        lambda: call.kernel[call.grid](*call.args, **call.options), return_mode="median"
    )
    return median


def save(configurations: Configurations) -> Path:
    """Write configurations where the kernels look for them; return the file."""
    assert configurations.shape is not None
    path = tuned_path(configurations.device, configurations.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(configurations.model_dump_json(indent=2) + "\n", encoding="utf-8")
    choose.cache_clear()
    return path


def _problem(
    layer: Layer, params: Sequence[Tensor], dtype: torch.dtype, device: torch.device, rows: float
) -> tuple[Problem, Tensor]:
    tokens = max(2, round(rows * layer.experts / layer.top_k))
    index = random_routing(tokens, layer.top_k, layer.experts, 0.0).to(device)
    x = torch.randn(tokens, layer.hidden, device=device).to(dtype)
    weight = torch.rand(index.shape, device=device).to(dtype)
    problem = prepare(x, index, weight, params, layer.body.to_json(), layer.experts)
    exact = reference.experts(x, index, weight, params, layer.body, layer.experts)
    return problem, exact


def _untried(notebook: Notebook, rows: float, gemm: GemmConfig) -> list[Trial]:
    trials = [Trial(rows=rows, stage=stage, gemm=gemm) for stage in ("up", "down")]
    return [trial for trial in trials if trial not in notebook]


def _run(trial: Trial, problem: Problem, exact: Tensor, time_call: TimeCall) -> None:
    # The other GEMM only has to run.
    other = _gemm(trial.gemm.block_m, 32, 32, warps=4, stages=2)
    up, down = (trial.gemm, other) if trial.stage == "up" else (other, trial.gemm)
    rule = launch.fitted(problem, PrefillRule(up_to_rows=None, up=up, down=down))
    if getattr(rule, trial.stage) != trial.gemm:
        trial.failure = "does not fit the device"
        return
    try:
        slots = compact(problem.index, problem.num_experts, rule.up.block_m)
        with recorded() as calls:
            got = launch.run_prefill(problem, rule, slots)
        error = float((got.float() - exact.float()).abs().max() / exact.float().abs().max())
        if not error <= TOLERANCE[problem.x.dtype]:
            trial.failure = f"its result is off by {error:.1e}"
            return
        (call,) = [call for call in calls if call.name == f"{trial.stage}_gemm"]
        trial.milliseconds = time_call(call)
    except (RuntimeError, TritonError) as error:
        trial.failure = str(error)[:200]  # a compiler refuses some: the others are tried


def _finished(
    problem: Problem, device: torch.device, rules: tuple[PrefillRule, ...]
) -> Configurations:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    shipped = choose(problem.device.target, problem.shape)
    is_float32 = problem.x.dtype == torch.float32
    return shipped.model_copy(
        update={
            "device": name,
            "shape": problem.shape,
            "origin": "tuned",
            "triton": triton.__version__,
            "prefill_float32" if is_float32 else "prefill": rules,
        }
    )
