"""One layer of experts in ONNX Runtime: the time it takes at skip 0 and at a higher skip ratio.

``python -m modes_fx.bench.export.onnx`` prints a table. Both ratios run in one session of one
model, which takes its thresholds as an input.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim

from modes_fx.bench.timing import interleaved_calls, median, ratio
from modes_fx.export.onnx.lower import Form
from modes_fx.export.onnx.model import save_onnx
from modes_fx.kernels.epilogue import MATMUL, SLICE, Body, Step
from modes_fx.vocabulary import Modality

HIDDEN, WIDTH, EXPERTS, TOP_K = 512, 512, 32, 8


class Layer(nn.Module):
    """A router with gated SwiGLU experts."""

    def __init__(self) -> None:
        """Make random weights, and a router that is surer of some experts than of others."""
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        sizes = ((EXPERTS, 2 * WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH), (EXPERTS, HIDDEN))
        up, down, router = (0.05 * torch.randn(size, generator=generator) for size in sizes)
        self.up, self.down = (nn.Parameter(weight, requires_grad=False) for weight in (up, down))
        self.router = nn.Parameter(router, requires_grad=False)
        self.body = Body((True, True), _swiglu(WIDTH)).to_json()

    def forward(self, x: Tensor, modality: Tensor, theta: Tensor) -> Tensor:
        """``x`` [T, H], ``modality`` [T], ``theta`` [M] -> [T, H]."""
        weight, index = self.choose(x)
        index, weight = torch.ops.modes_fx.gate(
            index, weight, modality, None, theta, EXPERTS, "renormalised", 0.0, 0
        )
        params = [self.up, self.down]
        out: Tensor = torch.ops.modes_fx.experts(x, index, weight, params, self.body, EXPERTS)
        return out

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the combine weights and the experts of each token, ``[T, K]``."""
        weight, index = (x @ self.router.T).softmax(-1).topk(TOP_K)
        return weight / weight.sum(-1, keepdim=True), index


def measure(
    tokens: int, skip: float, rounds: int, threads: int, form: Form = "unrolled"
) -> tuple[float, float, float]:
    """Time the layer.

    Args:
        tokens: T of each call.
        skip: the ratio of pairs that is skipped.
        rounds: how many calls are timed, each of other tokens.
        threads: of ONNX Runtime.
        form: of the ONNX model.

    Returns:
        Median seconds at skip 0 and at ``skip``, and the median of how many times as long the
        first takes in the same round.
    """
    layer, generator = Layer(), torch.Generator().manual_seed(1)
    shares = layer.choose(torch.randn(4096, HIDDEN, generator=generator))[0].flatten()
    keep_all = torch.full((len(Modality),), -torch.inf)
    thetas = {"none": keep_all, "some": torch.full_like(keep_all, float(shares.quantile(skip)))}
    codes = torch.zeros(tokens, dtype=torch.int8)
    batches = [torch.randn(tokens, HIDDEN, generator=generator).numpy() for _ in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        session = _session(layer, Path(folder) / "layer.onnx", threads, form)

    def call(theta: Tensor) -> Any:
        turn = iter(range(10**9))

        def run() -> None:
            x = batches[next(turn) % len(batches)]
            session.run(None, {"x": x, "modality": codes.numpy(), "theta": theta.numpy()})

        return run

    samples = interleaved_calls({name: call(theta) for name, theta in thetas.items()}, rounds)
    times = [median(samples[name], "wall") for name in thetas]
    return times[0], times[1], ratio(samples["none"], samples["some"], "wall").median


def _session(layer: Layer, path: Path, threads: int, form: Form) -> onnxruntime.InferenceSession:
    dynamic = {0: Dim("tokens")}
    example = (torch.randn(4, HIDDEN), torch.zeros(4, dtype=torch.int8), torch.zeros(len(Modality)))
    program = torch.export.export(layer, example, dynamic_shapes=(dynamic, dynamic, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(save_onnx(program, path, form).path), options)


def _swiglu(width: int) -> tuple[Step, ...]:
    return (
        Step(MATMUL, ("x", "p0", True)),
        Step(SLICE, ("%0", 0, width, 1)),
        Step("aten.silu.default", ("%1",)),
        Step(SLICE, ("%0", width, 2 * width, 1)),
        Step("aten.mul.Tensor", ("%2", "%3")),
        Step(MATMUL, ("%4", "p1", True)),
        Step("aten.mul.Tensor", ("%5", "w")),
    )


def main(
    skip: Annotated[float, typer.Option(help="Skip ratio to compare with 0.")] = 0.88,
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime.")] = 1,
    rounds: Annotated[int, typer.Option(help="Timed calls of each.")] = 25,
    form: Annotated[str, typer.Option(help="unrolled or blocked.")] = "unrolled",
) -> None:
    """Print how long decode (one token) and prefill (1024 tokens) take."""
    table = Table("tokens", "skip 0, ms", f"skip {skip:g}, ms", "speed-up")
    for tokens in (1, 1024):
        full, sparse, gain = measure(tokens, skip, rounds, threads, form)  # type: ignore[arg-type]
        table.add_row(f"{tokens}", f"{full * 1e3:.2f}", f"{sparse * 1e3:.2f}", f"{gain:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
