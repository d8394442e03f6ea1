"""Time our kernels and their peers on a device, after comparing what they compute.

Every way runs in a CUDA graph of several layers with weights of their own, as in a model, so that
no weight is still in the cache when its layer comes again. The ways take turns.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from modes_fx.bench.gpu.accounting import Routing, count_modes, flops
from modes_fx.bench.gpu.peers import Peer, peers_of
from modes_fx.bench.gpu.routing import random_routing
from modes_fx.bench.gpu.shapes import Layer
from modes_fx.bench.timing import Moment, Samples, Spread, Stopwatch, interleaved, read_clocks
from modes_fx.kernels import reference
from modes_fx.kernels.triton import register
from modes_fx.kernels.triton.config import expect_skip_ratio

OURS = "modes-fx"
PHASE = "layers"
TOLERANCE = 2e-2
"""How far from float32 a bfloat16 layer may be, as a fraction of its largest output."""
MAX_LAYERS = 8
REPLAYS = 10
"""How often the layers run in one sample, so that waiting for the device weighs little."""

Run = Callable[[], object]


class Difference(RuntimeError):  # noqa: N818  # what it is, not only that it is an error
    """A way to run the experts computes something else; nothing is timed."""


class Ceilings(BaseModel):
    """What the device was measured to do at most: bytes a second, operations a second."""

    bandwidth: float
    rate: float


class WayTiming(BaseModel):
    """How long one layer takes one way.

    Attributes:
        name: of the way.
        error: the largest difference from float32, as a fraction of the largest output.
        microseconds: median and quartiles of one layer.
        in_graph: whether a CUDA graph was replayed.
    """

    name: str
    error: float
    microseconds: tuple[float, float, float]
    in_graph: bool


class CaseTiming(BaseModel):
    """All ways for one routing.

    Attributes:
        layer: its name.
        tokens: T.
        skip: the share of pairs skipped.
        megabytes: the least that must be moved.
        gigaflops: what must be computed.
        ways: ours first.
    """

    layer: str
    tokens: int
    skip: float
    megabytes: float
    gigaflops: float
    ways: list[WayTiming]


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure a large copy and a large product of bfloat16 matrices."""
    size = 1 << 30
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(8192, 8192, device=device).bfloat16()

    def best(run: Run) -> float:
        samples = interleaved(
            {"ceiling": _sample(run, 5)}, rounds=10, clock=lambda: _waited(device)
        )
        return min(moment.wall for moment in samples["ceiling"][PHASE]) / 5

    copying = best(lambda: target.copy_(source))
    return Ceilings(
        bandwidth=2 * size / copying,
        rate=2 * 8192**3 / best(lambda: matrix @ matrix),
    )


def measure_case(
    layer: Layer, tokens: int, skip: float, device: torch.device, rounds: int = 20
) -> CaseTiming:
    """Compare and then time every way to run a layer.

    Args:
        layer: its shape.
        tokens: T.
        skip: the share of pairs that are skipped; our block sizes are chosen knowing it.
        device: where.
        rounds: how many samples of each way are taken.

    Raises:
        Difference: what a way computes is too far from float32.
    """
    dtype = torch.bfloat16
    copies = _copies(layer, device)
    params = [_random_params(layer, dtype, device) for _ in range(copies)]
    index = random_routing(tokens, layer.top_k, layer.experts, skip).to(device)
    x = torch.randn(tokens, layer.hidden, device=device).to(dtype)
    weight = torch.rand(index.shape, device=device).to(dtype)
    expect_skip_ratio(skip)
    try:
        ways = [_ways(layer, own) for own in params]
        errors = {
            name: _error(layer, params[0], way, x, index, weight) for name, way in ways[0].items()
        }
        runs = {name: [_bind(own[name], x, index, weight) for own in ways] for name in ways[0]}
        samples, in_graph = _time(runs, device, rounds)
    finally:
        expect_skip_ratio(0.0)
    routing = Routing.of(index.cpu(), layer.experts)
    return CaseTiming(
        layer=layer.name,
        tokens=tokens,
        skip=skip,
        megabytes=count_modes(layer, routing, 16, dtype.itemsize).total_bytes / 1e6,
        gigaflops=flops(layer, routing) / 1e9,
        ways=[
            WayTiming(
                name=name,
                error=errors[name],
                microseconds=_microseconds(samples[name], copies),
                in_graph=in_graph[name],
            )
            for name in runs
        ],
    )


def _ways(layer: Layer, params: Sequence[Tensor]) -> dict[str, Peer]:
    """Return every way by name; all of them get the choice as the gate leaves it."""
    body = layer.body.to_json()

    def ours(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        return register.experts(x, index, weight, params, body, layer.experts)

    return {OURS: ours, **peers_of(layer, params)}


def _bind(way: Peer, x: Tensor, index: Tensor, weight: Tensor) -> Run:
    return lambda: way(x, index, weight)


def _error(
    layer: Layer, params: Sequence[Tensor], way: Peer, x: Tensor, index: Tensor, weight: Tensor
) -> float:
    few = slice(0, min(len(x), 512))
    wide = [param.float() for param in params]
    exact = reference.experts(
        x[few].float(), index[few], weight[few].float(), wide, layer.body, layer.experts
    )
    got = way(x, index, weight)[few].float()
    error = float((got - exact).abs().max() / exact.abs().max().clamp_min(1e-9))
    if not error <= TOLERANCE:
        raise Difference(
            f"{layer.name}, {len(x)} tokens: a result is off by {error:.1e} of the largest output "
            f"where {TOLERANCE:.0e} is allowed, so nothing is timed; run make gpu-check and attach "
            "its report to an issue"
        )
    return error


def _time(
    runs: Mapping[str, Sequence[Run]], device: torch.device, rounds: int
) -> tuple[dict[str, Samples], dict[str, bool]]:
    cases, in_graph = {}, {}
    for name, layers in runs.items():
        replay = _captured(layers) if device.type == "cuda" else None
        in_graph[name] = replay is not None
        cases[name] = _sample(replay or _eager(layers), REPLAYS)
    return interleaved(cases, rounds, warmup=3, clock=lambda: _waited(device)), in_graph


def _eager(layers: Sequence[Run]) -> Run:
    return lambda: [run() for run in layers]


def _captured(layers: Sequence[Run]) -> Run | None:
    """Return the replay of a CUDA graph of all layers; None where one cannot be captured."""
    run = _eager(layers)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()  # compiles what is compiled at the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # the way waits for the device: it is timed as it is
        torch.cuda.synchronize()
        return None
    return graph.replay


def _sample(run: Run, times: int) -> Callable[[Stopwatch], object]:
    def case(stopwatch: Stopwatch) -> None:
        for _ in range(times):
            run()
        stopwatch.lap(PHASE)

    return case


def _waited(device: torch.device) -> Moment:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return read_clocks()


def _microseconds(samples: Samples, copies: int) -> tuple[float, float, float]:
    scale = 1e6 / (copies * REPLAYS)
    spread = Spread.of([moment.wall * scale for moment in samples[PHASE]])
    return spread.median, spread.lower, spread.upper


def _copies(layer: Layer, device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    one = (layer.streams + 1) * layer.experts * layer.hidden * layer.intermediate * 2
    return int(max(1, min(MAX_LAYERS, free // 2 // one)))


def _random_params(layer: Layer, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    params = layer.params(dtype, device)
    for param in params:
        param.normal_(std=param.shape[-1] ** -0.5 if param.dim() == 3 else 0.1)
    return params
