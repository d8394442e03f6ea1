"""From an exported program to an ONNX model in which our ops are still whole.

torch's exporter translates the rest of the model. Each of our ops becomes one node of the domain
``modes_fx``, for ``modes_fx.export.onnx.lower`` to replace by standard operators: branches and
loops over many constants are easier to build once the model is there.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true
from transformers.exporters.exporter_onnx import apply_fx_node_fixes, apply_patches

from modes_fx import mean_ops as mean_ops  # registers the op
from modes_fx import ops as ops
from modes_fx.export.errors import ExportError
from modes_fx.export.masked_rows import spread_masked_rows

DOMAIN = "modes_fx"
OPSET = 20
"""The opset of every model."""

_VERSION = 1
_ATTRIBUTES = {int: OpSchema.AttrType.INT, float: OpSchema.AttrType.FLOAT}


def translate(program: ExportedProgram) -> ir.Model:
    """Return the program as an ONNX model with nodes ``Gate``, ``Experts``, ``AddSkippedMeans``.

    Args:
        program: changed in place where it asks what a graph can tell: additions under a mask, and
            counts of tokens.

    Raises:
        ExportError: an operation of the program has no translation.
    """
    spread_masked_rows(program)
    _settle_token_counts(program)
    # transformers' repairs of what torch's exporter cannot translate, checks at run time among it.
    apply_fx_node_fixes("onnx", program.graph_module)
    with warnings.catch_warnings(), apply_patches("onnx"):
        # Of torch's own code, about itself.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=dict(TRANSLATIONS),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"torch cannot translate this program to ONNX: {error}") from error
    assert translated is not None
    return translated.model


def _settle_token_counts(program: ExportedProgram) -> None:
    """Drop the count of a call's tokens where the sizes in the graph say that it is right."""
    for node in program.graph.nodes:
        if node.target is torch.ops.modes_fx.gate.default and node.args[3] is not None:
            index, _, modality, _, *_ = node.args
            here, given = (value.meta["val"].shape[0] for value in (index, modality))
            if statically_known_true(here == given):
                node.update_arg(3, None)
    program.graph_module.recompile()


def _op(name: str, outputs: int, attributes: Mapping[str, type]) -> Op:
    parameter, option = OpSchema.FormalParameter, OpSchema.FormalParameterOption
    kinds = ["inputs", *(f"out{i}" for i in range(outputs))]
    schema = OpSchema(
        name,
        DOMAIN,
        _VERSION,
        inputs=[
            parameter("inputs", "inputs", "", param_option=option.Variadic, is_homogeneous=False)
        ],
        outputs=[parameter(kind, kind, "") for kind in kinds[1:]],
        type_constraints=[(kind, ["tensor(float)"], "") for kind in kinds],
        attributes=[
            OpSchema.Attribute(key, _ATTRIBUTES.get(kind, OpSchema.AttrType.STRING), "")
            for key, kind in attributes.items()
        ],
    )
    return Op(Opset(DOMAIN, _VERSION), name, schema)


_GATE = _op(
    "Gate", 2, {"num_experts": int, "share": str, "kept_mass_exponent": float, "min_k": int}
)
_EXPERTS = _op("Experts", 1, {"body": str, "num_experts": int})
_MEANS = _op("AddSkippedMeans", 1, {})


# torch tells inputs from attributes by whether a parameter is annotated as a number or a text.
def _gate(  # type: ignore[no-untyped-def]
    index,
    weight,
    modality,
    tokens,
    theta,
    num_experts: int,
    share: str,
    kept_mass_exponent: float,
    min_k: int,
) -> Any:
    if tokens is not None:
        raise ExportError(
            "a gate of this program checks at run time how many tokens there are, which ONNX "
            "cannot: give it one modality code for each token, and no `tokens`"
        )
    return _GATE(
        index,
        weight,
        modality,
        theta,
        num_experts=num_experts,
        share=share,
        kept_mass_exponent=kept_mass_exponent,
        min_k=min_k,
    )


def _experts(  # type: ignore[no-untyped-def]
    x, index, weight, params: Sequence[Any], body: str, num_experts: int
) -> Any:
    return _EXPERTS(x, index, weight, *params, body=body, num_experts=num_experts)


def _add_skipped_means(out, index, weight, kept_index, modality, means) -> Any:  # type: ignore[no-untyped-def]
    return _MEANS(out, index, weight, kept_index, modality, means)


TRANSLATIONS: Mapping[Any, Any] = {
    torch.ops.modes_fx.gate.default: _gate,
    torch.ops.modes_fx.experts.default: _experts,
    torch.ops.modes_fx.add_skipped_means.default: _add_skipped_means,
}
"""What becomes of our ops."""
