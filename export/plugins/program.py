"""Exchange the experts of an exported program for the ops that plugins stand for.

The ops run wherever Triton does, so a program with them computes what the engine will.
"""

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from modes_fx.export.errors import ExportError
from modes_fx.export.gates import describe_new_nodes
from modes_fx.export.plugins.layer import Plugin, plugins_of
from modes_fx.kernels import reference
from modes_fx.kernels.means import add_skipped_means_inline
from modes_fx.kernels.triton.calls import launch
from modes_fx.kernels.triton.plan import UnsupportedBodyError

NAMESPACE = "modes_fx_plugins"
EXPERTS = torch.ops.modes_fx.experts.default
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def with_plugins(
    program: ExportedProgram, target: str
) -> tuple[ExportedProgram, dict[str, tuple[Plugin, tuple[Tensor, ...]]]]:
    """Return a program whose experts are ops of plugins, and whose gates are PyTorch's own.

    Args:
        program: with gated experts; left as it was.
        target: the GPU that block sizes are chosen for, such as ``sm_89``.

    Returns:
        The program; and by name each plugin, with inputs that it has in one of the layers.

    Raises:
        ExportError: a layer computes what the kernels cannot, or an op of ours is left.
    """
    program = program.run_decompositions(_inline_ops())
    graph = program.graph
    plugins: dict[str, tuple[Plugin, tuple[Tensor, ...]]] = {}
    for node in list(graph.nodes):
        if node.target is EXPERTS:
            for plugin, inputs in _replace(node, target):
                plugins[plugin.name] = plugin, inputs
    describe_new_nodes(graph)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    left = {str(n.target) for n in graph.nodes if str(n.target).startswith("modes_fx.")}
    if left:
        raise ExportError(f"no plugin computes {min(left)}: choose another format")
    return program, plugins


def op_of(plugin: Plugin) -> Any:
    """Return the op of a plugin, and define it where it is not yet."""
    namespace = getattr(torch.ops, NAMESPACE)
    if not hasattr(namespace, plugin.name):

        def run(*inputs: Tensor) -> Tensor:
            call = plugin.call(*inputs)
            launch(call.kernel, call.grid, *call.args, **call.options)
            output: Tensor = call.args[-1]
            return output

        _library.define(f"{plugin.name}{plugin.schema}")
        _library.impl(plugin.name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{NAMESPACE}::{plugin.name}", lambda *inputs: plugin.output(inputs[2]), lib=_library
        )
    return getattr(namespace, plugin.name).default


def _replace(node: Node, target: str) -> list[tuple[Plugin, tuple[Tensor, ...]]]:
    arguments: tuple[Any, ...] = node.args
    x, index, weight, params, body, num_experts = arguments
    values = [param.meta["val"] for param in params]
    top_k = index.meta["val"].shape[1]
    try:
        pair = plugins_of(
            x.meta["val"], weight.meta["val"], values, body, num_experts, top_k, target
        )
    except UnsupportedBodyError as error:
        raise ExportError(f"the kernels cannot run a layer's experts: {error}") from error
    graph, found, rows = node.graph, [], x
    with graph.inserting_before(node):
        narrow = graph.call_function(
            torch.ops.aten._to_copy.default, (index,), {"dtype": torch.int32}
        )
        describe_new_nodes(graph)
        for plugin in pair:
            taken = (rows, weight, narrow, *(params[number] for number in plugin.params))
            rows = graph.call_function(op_of(plugin), taken)
            describe_new_nodes(graph)
            found.append((plugin, tuple(one.meta["val"] for one in taken)))
    node.replace_all_uses_with(rows)
    graph.erase_node(node)
    return found


def _inline_ops() -> dict[Any, Any]:
    return {
        torch.ops.modes_fx.gate.default: _gate,
        torch.ops.modes_fx.add_skipped_means.default: add_skipped_means_inline,
    }


def _gate(
    index: Tensor,
    weight: Tensor,
    modality: Tensor,
    tokens: Tensor | None,
    theta: Tensor,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> tuple[Tensor, Tensor]:
    return reference.gate(
        index, weight, modality, theta, num_experts, share, kept_mass_exponent, min_k
    )
