"""A model's decoder with a policy inside, as a program without original experts.

The decoder is the part of a transformers model that holds the MoE layers, behind embeddings and
vision tower. What one call of the model hands to it is recorded and becomes the program's inputs,
with one more: ``modality``, the code of each token. Thresholds are constants.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from modes_fx.attach import attach, attached, detach
from modes_fx.export.errors import ExportError
from modes_fx.export.gates import quiet
from modes_fx.export.masked_add import spread_masked_adds
from modes_fx.passes.pipeline import rewrite_graph
from modes_fx.passes.report import LayerReport
from modes_fx.passes.rewrite import ADD_SKIPPED_MEANS, GATE
from modes_fx.policy import SkipPolicy

Inputs = dict[str, Tensor]

MODALITY = "modality"
_ASSERTS = (torch.ops.aten._assert_tensor_metadata.default,)
_WRITTEN = (GATE, torch.ops.modes_fx.experts.default, ADD_SKIPPED_MEANS)


@dataclass(frozen=True)
class DecoderProgram:
    """A decoder as a program.

    Attributes:
        program: takes the tensors of :func:`record_call` in order, returns ``[B, S, H]``.
        layers: what became of each MoE layer; all are rewritten.
    """

    program: ExportedProgram
    layers: list[LayerReport]


def export_decoder(
    model: nn.Module,
    policy: SkipPolicy | None,
    target: float | None,
    example: Mapping[str, Any],
    other: Mapping[str, Any],
) -> DecoderProgram:
    """Export the decoder of a model for prefill, without a cache.

    Args:
        model: a transformers model, not attached.
        policy: its thresholds; None keeps every expert.
        target: a calibrated target of the policy.
        example: arguments of the model's forward, of at least two sequences and images if any.
        other: the same in other sizes: what differs between the two is dynamic in the program.

    Returns:
        The program.

    Raises:
        ExportError: a layer cannot be rewritten, or the modality of its tokens is not that of the
            call; the message names the layer and the reason.
    """
    attach(model, policy, target=target)
    try:
        decoder = _decoder(model)
        with torch.no_grad(), quiet():
            inputs, structure = _recorded(model, decoder, example)
            others, _ = _recorded(model, decoder, other)
            program = torch.export.export(
                _Flat(decoder, structure),
                (list(inputs.values()),),
                dynamic_shapes=([_dynamic(inputs[name], others[name]) for name in inputs],),
                strict=False,
            ).run_decompositions({})
        return DecoderProgram(program, _rewrite(program, list(inputs).index(MODALITY)))
    finally:
        detach(model)


def record_call(model: nn.Module, example: Mapping[str, Any]) -> Inputs:
    """Return, by name, the tensors that one call of a model hands to its decoder, and modality.

    Args:
        model: a transformers model, not attached.
        example: arguments of its forward.
    """
    attach(model, None)
    try:
        with torch.no_grad(), quiet():
            return _recorded(model, _decoder(model), example)[0]
    finally:
        detach(model)


class _Flat(nn.Module):
    """The decoder as a function of a list of tensors, the last of which is modality."""

    def __init__(self, decoder: nn.Module, structure: tuple[list[Any], Any]) -> None:
        super().__init__()
        self.decoder = decoder
        self.structure = structure

    def forward(self, tensors: list[Tensor]) -> Tensor:
        leaves, spec = self.structure
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, _Slot) else leaf for leaf in leaves]
        kwargs = pytree.tree_unflatten(filled, spec)
        hidden: Tensor = self.decoder(**kwargs).last_hidden_state
        return hidden


class _Slot:
    """Where a tensor was."""


def _decoder(model: nn.Module) -> nn.Module:
    """Return the module that runs the layers: the innermost one that holds all of them."""
    paths = [path.split(".") for path in attached(model).layers]
    columns = zip(*paths, strict=False)
    shared = [steps[0] for steps in takewhile(lambda steps: len(set(steps)) == 1, columns)]
    for length in range(len(shared), -1, -1):
        module = model.get_submodule(".".join(shared[:length]))
        if not isinstance(module, nn.ModuleList) and hasattr(module, "get_input_embeddings"):
            return module
    raise ExportError(f"{type(model).__name__} has no decoder that holds all MoE layers")


def _recorded(
    model: nn.Module, decoder: nn.Module, example: Mapping[str, Any]
) -> tuple[Inputs, tuple[list[Any], Any]]:
    """Run a call; return the decoder's tensors by name, and where they go in its arguments."""
    calls: list[tuple[dict[str, Any], Tensor]] = []
    codes = attached(model).modality

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise ExportError("the decoder has to take its arguments by name")
        tokens = next(
            value
            for name in ("inputs_embeds", "input_ids")
            if isinstance(value := kwargs.get(name), Tensor)
        )
        device = codes.on(tokens.device)
        batch, length = tokens.shape[:2]
        flat = device[0][: batch * length]
        calls.append((dict(kwargs), flat.view(batch, length).clone()))

    handle = decoder.register_forward_pre_hook(record, with_kwargs=True)
    try:
        model(**{**example, "use_cache": False})
    finally:
        handle.remove()
    kwargs, modality = calls[0]
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    with_path, spec = pytree.tree_flatten_with_path(kwargs)
    inputs = {
        "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): leaf
        for path, leaf in with_path
        if isinstance(leaf, Tensor)
    }
    leaves = [_Slot() if isinstance(leaf, Tensor) else leaf for _, leaf in with_path]
    return {**inputs, MODALITY: modality}, (leaves, spec)


def _dynamic(one: Tensor, other: Tensor) -> dict[int, Any]:
    pairs = enumerate(zip(one.shape, other.shape, strict=True))
    return {axis: Dim.AUTO for axis, (here, there) in pairs if here != there}


def _rewrite(program: ExportedProgram, modality: int) -> list[LayerReport]:
    """Rewrite the regions of a program; its gates read the input at a position."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target in _ASSERTS:
            graph.erase_node(node)
    spread_masked_adds(program)
    names, values = _named_inputs(program)
    for node, value in values.items():
        if isinstance(value, nn.Parameter):
            node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    reports = rewrite_graph(program.graph_module, values, names)
    left = [report for report in reports if report.status != "rewritten" or not report.gated]
    if left or not reports:
        first = f"{left[0].path}: {left[0].reason}" if left else "none was found"
        raise ExportError(
            f"{len(left)} of {len(reports)} MoE layers were not rewritten, the first is {first}"
        )
    user_inputs = program.graph_signature.user_inputs
    code = next(node for node in graph.nodes if node.name == user_inputs[modality])
    _read_codes(program, code)
    return reports


def _named_inputs(program: ExportedProgram) -> tuple[dict[Node, str], dict[Node, Any]]:
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = {
        placeholders[spec.arg.name]: spec.target
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    }
    held = {**program.state_dict, **program.constants}
    return names, {node: held[name] for node, name in names.items() if name in held}


def _read_codes(program: ExportedProgram, code: Node) -> None:
    """Have every gate read the program's own input instead of an attached model's buffer."""
    graph = program.graph
    fake = code.meta["val"].fake_mode
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        flat = graph.call_function(torch.ops.aten.view.default, (code, [-1]))
    with fake:
        flat.meta["val"] = code.meta["val"].view(-1)
    for node in graph.nodes:
        if node.target is GATE:
            index, weight, _, _, *rest = node.args
            node.args = (index, weight, flat, None, *rest)
            with fake:
                node.meta["val"] = tuple(
                    torch.empty_like(given.meta["val"]) for given in (index, weight)
                )
        elif node.target is ADD_SKIPPED_MEANS:
            node.args = (*node.args[:4], flat, *node.args[5:])
            node.meta["val"] = node.args[0].meta["val"]
        elif node.target is operator.getitem and node.args[0].target is GATE:
            node.meta["val"] = node.args[0].meta["val"][node.args[1]]
        elif getattr(node.target, "namespace", "") == "modes_fx" and node.target not in _WRITTEN:
            raise ExportError(
                f"a layer's experts see some of the call's tokens only ({node.name}), and "
                "which ones cannot be told in an exported program"
            )
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()
