"""modes_backend: the torch.compile backend. Captures, runs the passes, hands the rest to inductor.

Dynamo's graph is made functional without decomposing anything, the passes rewrite its MoE regions,
and inductor compiles the result as if the model had been written with our ops. Thresholds and
modality are inputs of that graph, so changing them recompiles nothing, and every compile cache sees
the rewritten graph.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch._inductor.decomposition import register_decomposition
from torch.fx import GraphModule, Node

from modes_fx import mean_ops as mean_ops  # registers the op that is decomposed
from modes_fx.errors import MatchError
from modes_fx.graph_inputs import GraphInput, graph_inputs, pair_inputs
from modes_fx.kernels.means import add_skipped_means_inline
from modes_fx.passes.pipeline import refuse_graph, rewrite_graph
from modes_fx.passes.report import COMPUTED, LayerReport

# Called as an op, this takes longer for a token than its experts do. In inductor's own table, as a
# table of ours would keep what is compiled out of inductor's caches.
register_decomposition([torch.ops.modes_fx.add_skipped_means.default])(add_skipped_means_inline)

CompiledGraph = Callable[..., Any]
Observer = Callable[[list[LayerReport]], None]


@dataclass(frozen=True)
class BackendOptions:
    """``torch.compile(..., options={...})`` of this backend.

    Attributes:
        strict: an MoE layer of a captured graph that is not rewritten is an error; ``attach`` has
            an option of that name for layers that no graph holds.
        compiler: what compiles the rewritten graph: ``"inductor"``, or ``"eager"`` to run it node
            by node (starts at once, needs no C++ compiler, computes the same).
        inductor: inductor's own options, such as ``{"max_autotune": True}``.
    """

    strict: bool = False
    compiler: str = "inductor"
    inductor: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown compiler."""
        if self.compiler not in ("inductor", "eager"):
            raise ValueError(f"compiler must be 'inductor' or 'eager', got {self.compiler!r}")


def modes_backend(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> CompiledGraph:
    """Compile one captured graph; use it as ``torch.compile(model, backend=modes_backend)``.

    Args:
        module: the graph Dynamo captured.
        example_inputs: its real inputs.
        options: see :class:`BackendOptions`.
        mode: inductor's mode, such as ``"max-autotune"``.

    Returns:
        A callable with the graph's inputs and outputs.

    Raises:
        MatchError: under ``strict``, where an MoE layer could not be rewritten.
        ValueError: an unknown option.
    """
    return compile_graph(module, example_inputs, parse_options(options, mode), warn_unmatched)


def parse_options(
    options: Mapping[str, Any] | None = None, mode: str | None = None
) -> BackendOptions:
    """Check the options of a ``torch.compile`` call.

    Raises:
        ValueError: an unknown option; names the known ones.
    """
    given = dict(options or {})
    known = set(BackendOptions.__dataclass_fields__)
    if unknown := sorted(set(given) - known):
        raise ValueError(
            f"modes_backend does not know the option {', '.join(unknown)}; it knows "
            f"{', '.join(sorted(known))} (inductor's own go into options={{'inductor': {{...}}}})"
        )
    if mode is not None:
        from torch._inductor import list_mode_options

        given["inductor"] = {**list_mode_options(mode), **(given.get("inductor") or {})}
    return BackendOptions(**given)


def compile_graph(
    module: GraphModule,
    example_inputs: Sequence[Any],
    options: BackendOptions,
    observe: Observer,
) -> CompiledGraph:
    """Compile one captured graph and tell an observer what became of its MoE layers."""
    if torch.is_grad_enabled() and any(_needs_gradient(value) for value in example_inputs):
        _refuse_gradients(options.strict)
        refuse_graph(module, "the call records gradients")
        return module if options.compiler == "eager" else _inductor(module, example_inputs, options)
    given = graph_inputs(module, example_inputs)

    def rewrite_and_compile(gm: GraphModule, example_inputs_: Sequence[Any]) -> CompiledGraph:
        paired = pair_inputs(gm, given)
        if paired is None:
            reports = refuse_graph(
                gm, "its inputs are tensor subclasses, or share memory, in a way not understood"
            )
        else:
            _copy_weight_marks(paired)
            values = {node: item.value for node, item in paired.items()}
            reports = rewrite_graph(gm, values, {node: i.name for node, i in paired.items()})
        observe(reports)
        if options.strict:
            _require_all(reports)
        if options.compiler == "eager":
            return make_boxed_func(gm.forward)
        return make_boxed_func(_inductor(gm, example_inputs_, options))

    compiled: CompiledGraph = aot_module_simplified(
        module,
        example_inputs,
        fw_compiler=rewrite_and_compile,  # type: ignore[arg-type]
        inference_compiler=rewrite_and_compile,  # type: ignore[arg-type]
        decompositions={},
        keep_inference_input_mutations=True,
    )
    return compiled


def warn_unmatched(reports: Sequence[LayerReport]) -> None:
    """Say which MoE layers of a graph were left as they are, and what is not gated."""
    left = [report for report in reports if report.status != "rewritten"]
    if left:
        warnings.warn(
            f"{len(left)} of {len(reports)} MoE layers in this graph were left as they are; the "
            f"first is {left[0].path or '(unnamed)'}: {left[0].reason}. They compute every expert. "
            "See modes_fx.explain(model, **inputs)",
            stacklevel=2,
        )
    computed = [report for report in reports if report.weights == COMPUTED]
    if computed:
        warnings.warn(
            f"{len(computed)} of {len(reports)} MoE layers compute all their experts' weights at "
            f"every call; the first is {computed[0].path}. They are stored in a form that no "
            "kernel reads: results are right and pairs are skipped, but it is slow. Int8 with a "
            "scale for each output column (modes_fx.quantise_experts(model, 8)) is read as it is",
            stacklevel=2,
        )
    if not left and any(not report.gated for report in reports):
        warnings.warn(
            "no policy is attached, so every expert is kept: the model is rewritten but skips "
            "nothing. Call modes_fx.attach(model, policy) before compiling",
            stacklevel=2,
        )


def _require_all(reports: Sequence[LayerReport]) -> None:
    left = [report for report in reports if report.status != "rewritten"]
    if left:
        raise MatchError(
            f"strict: {len(left)} of {len(reports)} MoE layers in this graph were not rewritten; "
            f"the first is {left[0].path or '(unnamed)'}: {left[0].reason}. "
            "Run modes_fx.explain(model, **inputs) for all of them"
        )


def _refuse_gradients(strict: bool) -> None:
    message = (
        "modes_backend is for inference, but this call records gradients: the original graph runs "
        "and no expert is skipped. Call the model under torch.no_grad() or torch.inference_mode()"
    )
    if strict:
        raise MatchError(f"strict: {message}")
    warnings.warn(message, stacklevel=2)


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _inductor(module: GraphModule, inputs: Sequence[Any], options: BackendOptions) -> CompiledGraph:
    _require_cpp_compiler(inputs)
    compiled: Any = compile_fx(module, list(inputs), config_patches=dict(options.inductor or {}))
    return lambda *args: compiled(*args)


def _require_cpp_compiler(inputs: Sequence[Any]) -> None:
    on_cpu = any(isinstance(v, torch.Tensor) and v.device.type == "cpu" for v in inputs)
    candidates = torch._inductor.config.cpp.cxx
    if on_cpu and not any(name and shutil.which(name) for name in candidates):
        raise MatchError(
            "inductor needs a C++ compiler for CPU code and found none of "
            f"{', '.join(str(name) for name in candidates if name)}: install one (Debian, Ubuntu: "
            "apt-get install g++), set CXX, or compile with options={'compiler': 'eager'}"
        )


def _copy_weight_marks(paired: Mapping[Node, GraphInput]) -> None:
    """Tell the passes and inductor which inputs are the model's own and keep their address."""
    for node, item in paired.items():
        if item.marks is not None:
            node.meta["tensor_dict"] = item.marks
