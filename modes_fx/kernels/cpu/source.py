"""The C++ source of one body's kernel."""

import json

from modes_fx.kernels.cpu.plan import Part, Stream, UnfusableError, Vector, View, plan
from modes_fx.kernels.epilogue import Body

ELEMENTS = {"float32": "float", "bfloat16": "BFloat16"}
"""What a kernel can be built for."""


MAX_VECTORS = 8
"""How many vector parameters a part of a body may read; MAX_BODY_VECTORS of body.h."""


def kernel_source(body: Body, dtype: str, isa: str) -> str:
    """Return a translation unit that registers a kernel for a body.

    Args:
        body: what one expert computes.
        dtype: of the model, a key of :data:`ELEMENTS`.
        isa: the name of the instruction set whose products it uses.

    Raises:
        UnfusableError: the body has no fused kernel.
    """
    parts = plan(body)
    if max(len(parts.middle.vectors), len(parts.tail.vectors)) > MAX_VECTORS:
        raise UnfusableError(f"it reads more than {MAX_VECTORS} vectors at once")
    low, high = (*parts.streams, *parts.streams)[:2]
    if parts.layout == "interleaved":
        low = high = low._replace(view=View())
    even = min(range(len(parts.streams)), key=lambda i: parts.streams[i].view)
    products = f"modes_fx_experts_{dtype}_{isa}"
    return f"""\
// {body.summary()}
#include "activations.h"
#include "body.h"

extern "C" const char* {products}(const modes_fx::Call&, const modes_fx::BodyCode&);

namespace modes_fx {{
namespace {{

struct Body {{
  static constexpr Streams STREAMS = Streams::{parts.layout};
  static constexpr int EVEN = {even};
  static constexpr Half LOW{_half(low)};
  static constexpr Half HIGH{_half(high)};
  static constexpr Half DOWN{{{parts.down}, {_bool(parts.down_transposed)}, 0}};
{_vectors("MIDDLE", parts.middle.vectors)}
{_vectors("TAIL", parts.tail.vectors)}
  static constexpr bool HAS_PROLOGUE = {_bool(parts.prologue is not None)};

{_function("prologue", "Vec x, Vec w", parts.prologue or Part((), "x", ()))}
{_function("middle", "const Vec* s, const Vec* v, Vec w", parts.middle)}
{_function("tail", "Vec y, const Vec* v, Vec w", parts.tail)}
}};

const char* run(const Call& call) {{
  static constexpr BodyCode CODE = code_of<{ELEMENTS[dtype]}, Body>();
  return {products}(call, CODE);
}}

const bool registered = [] {{
  modes_fx_register_kernel(
      "{dtype}", {json.dumps(body.to_json())}, "{parameter_kinds(body)}", run);
  return true;
}}();

}}  // namespace
}}  // namespace modes_fx
"""


def _half(stream: Stream) -> str:
    return f"{{{stream.param}, {_bool(stream.transposed)}, {stream.view.start}}}"


def _vectors(name: str, vectors: tuple[Vector, ...]) -> str:
    views = ", ".join(f"{{{v.param}, {v.view.start}, {v.view.step}}}" for v in vectors)
    return f"""\
  static constexpr int NUM_{name}_VECTORS = {len(vectors)};
  static constexpr VectorView {name}_VECTORS[{max(1, len(vectors))}] = {{{views}}};"""


def _function(name: str, arguments: str, part: Part) -> str:
    lines = "".join(f"    {line}\n" for line in part.lines)
    return f"  static Vec {name}({arguments}) {{\n{lines}    return {part.result};\n  }}"


RANKS = {"M": (3, 5), "R": (3, 5), "V": (2,), "S": (0, 1)}
"""The dimensions that a parameter of each kind may have."""


def parameter_kinds(body: Body) -> str:
    """Return what a body takes each parameter for, as the letters of call.h.

    Raises:
        UnfusableError: the body has no fused kernel.
    """
    parts = plan(body)
    by_rows = {stream.param: stream.transposed for stream in parts.streams}
    by_rows[parts.down] = parts.down_transposed
    matrix, vector = {True: "R", False: "M"}, {True: "V", False: "S"}
    return "".join(
        matrix[by_rows[i]] if i in by_rows else vector[per_expert]
        for i, per_expert in enumerate(body.per_expert)
    )


def _bool(value: bool) -> str:
    return "true" if value else "false"
