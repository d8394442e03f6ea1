"""The body: what one expert computes for one token, as small canonical JSON.

A body is a function ``y = body(x, w, p0, p1, ...)`` of the rows of one expert:

- ``x`` [n, H] the tokens' hidden states, ``w`` [n, 1] their combine weights,
- ``pN`` the region's parameters: *per-expert* ones are ``[E, ...]`` tensors of which the expert
  sees its own slice, the others are shared by all experts,
- the result is ``[n, H]``; the region's output is the sum of the results over a token's experts.

It is lifted from a model's graph, so that any activation, bias, clamp or layout survives, and is
complete in itself: no registry key, so it can cross processes, exports and compile caches.
Operations are ATen overloads from a whitelist, plus ``matmul`` (rows times a per-expert matrix, and
perhaps a per-expert bias) and ``slice`` (a strided part of the last dimension). Values are named
``%0, %1, ...`` in order.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

BODY_VERSION = 1

MATMUL = "matmul"
SLICE = "slice"

ATEN_WHITELIST = frozenset(
    {
        "aten._prelu_kernel.default",
        "aten._to_copy.default",
        "aten.abs.default",
        "aten.add.Scalar",
        "aten.add.Tensor",
        "aten.celu.default",
        "aten.clamp.default",
        "aten.clamp_max.default",
        "aten.clamp_min.default",
        "aten.div.Scalar",
        "aten.div.Tensor",
        "aten.elu.default",
        "aten.erf.default",
        "aten.exp.default",
        "aten.expm1.default",
        "aten.gelu.default",
        "aten.gt.Scalar",
        "aten.hardsigmoid.default",
        "aten.hardswish.default",
        "aten.hardtanh.default",
        "aten.leaky_relu.default",
        "aten.log1p.default",
        "aten.maximum.default",
        "aten.mean.dim",
        "aten.minimum.default",
        "aten.mish.default",
        "aten.mul.Scalar",
        "aten.mul.Tensor",
        "aten.neg.default",
        "aten.pow.Tensor_Scalar",
        "aten.relu.default",
        "aten.rsqrt.default",
        "aten.rsub.Scalar",
        "aten.sigmoid.default",
        "aten.sign.default",
        "aten.silu.default",
        "aten.softplus.default",
        "aten.sqrt.default",
        "aten.square.default",
        "aten.sub.Scalar",
        "aten.sub.Tensor",
        "aten.sum.dim_IntList",
        "aten.tanh.default",
        "aten.threshold.default",
        "aten.where.self",
    }
)
"""Row-wise operations a body may contain: each output row depends on the same input row only."""

Matmul = Callable[[torch.Tensor, torch.Tensor, bool, torch.Tensor | None], torch.Tensor]
"""(rows [n, in], weight [E, ...], transposed, bias [E, out]) -> [n, out]: every row times its
expert's matrix, plus its bias where there is one, rounded once."""


class BodyError(ValueError):
    """A body that is malformed, of a newer version, or uses an operation outside the whitelist."""


@dataclass(frozen=True)
class Step:
    """One operation of a body.

    Attributes:
        op: ``matmul``, ``slice`` or a whitelisted ATen overload such as ``aten.silu.default``.
        args: names of values (``x``, ``w``, ``pN``, ``%N``) or plain constants.
        kwargs: constants by name; a dtype is written as ``float32``.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Body:
    """An expert's computation; see the module's description for its meaning.

    Attributes:
        per_expert: for each parameter ``pN``, whether its first dimension is the expert.
        steps: operations in order; step ``i`` defines the value ``%i``. The last one is the result.
    """

    per_expert: tuple[bool, ...]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Check the whole body, so that a run cannot meet a malformed step."""
        if not self.steps:
            raise BodyError("a body needs at least one step")
        for position, step in enumerate(self.steps):
            _check_step(step, position, len(self.per_expert))

    def to_json(self) -> str:
        """Return the canonical JSON: equal bodies give equal text."""
        return _dump(self)

    @staticmethod
    @lru_cache(maxsize=256)
    def from_json(text: str) -> "Body":
        """Read a body.

        Raises:
            BodyError: the text is not a body, or of a version this release cannot read.
        """
        return _load(text)

    @cached_property
    def last_use(self) -> tuple[tuple[str, ...], ...]:
        """For each step, the values that no later step reads."""
        readers = {
            arg: i for i, step in enumerate(self.steps) for arg in step.args if _is_value(arg)
        }
        return tuple(
            tuple(name for name, last in readers.items() if last == i)
            for i in range(len(self.steps))
        )

    def summary(self) -> str:
        """Return the operations in one line, for people: ``matmul(p0) silu ... matmul(p1)``."""
        return " ".join(
            f"matmul({s.args[1]})" if s.op == MATMUL else s.op.split(".")[1 if "." in s.op else 0]
            for s in self.steps
        )

    def run(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        params: Sequence[torch.Tensor],
        expert: torch.Tensor,
        matmul: Matmul,
    ) -> torch.Tensor:
        """Interpret the body on rows of any experts.

        Args:
            x: ``[n, H]`` hidden states, one row a pair.
            weight: ``[n, 1]`` combine weights.
            params: the region's parameters, per-expert ones with their ``E`` dimension.
            expert: ``[n]`` the expert of each row.
            matmul: how rows meet their expert's matrix; this is where an implementation differs.

        Returns:
            ``[n, H]`` the experts' outputs, in the dtype the model's own graph gives them.
        """
        values: dict[str, torch.Tensor] = {"x": x, "w": weight}

        def read(arg: Any) -> Any:
            if not isinstance(arg, str):
                return arg
            if arg.startswith("p"):
                param = params[int(arg[1:])]
                return param.index_select(0, expert) if self.per_expert[int(arg[1:])] else param
            return values[arg]

        result = x
        for position, step in enumerate(self.steps):
            if step.op == MATMUL:
                rows, param, transposed, *bias = step.args
                added = params[int(bias[0][1:])] if bias else None
                result = matmul(read(rows), params[int(param[1:])], transposed, added)
            elif step.op == SLICE:
                rows, start, end, stride = step.args
                result = read(rows)[..., start:end:stride]
            else:
                kwargs = {name: _read_dtype(name, value) for name, value in step.kwargs}
                result = _aten(step.op)(*(read(arg) for arg in step.args), **kwargs)
            values[f"%{position}"] = result
            for name in self.last_use[position]:
                del values[name]
        return result


def _check_step(step: Step, position: int, num_params: int) -> None:
    names = [arg for arg in step.args if isinstance(arg, str)]
    for name in names:
        known = name in ("x", "w") or (
            name[:1] in ("p", "%")
            and name[1:].isdigit()
            and int(name[1:]) < (num_params if name[0] == "p" else position)
        )
        if not known:
            raise BodyError(f"step {position} ({step.op}) reads the undefined value {name!r}")
    if step.op == MATMUL:
        weights = (step.args[1], *step.args[3:]) if 3 <= len(step.args) <= 4 else ("",)
        if not all(str(weight).startswith("p") for weight in weights):
            raise BodyError(
                f"step {position}: matmul takes rows, a parameter, a transposed flag and perhaps "
                "a parameter of biases"
            )
    elif step.op == SLICE:
        if len(step.args) != 4:
            raise BodyError(f"step {position}: slice takes rows, start, end and stride")
    elif step.op not in ATEN_WHITELIST:
        raise BodyError(f"step {position}: {step.op} is not an operation a body may contain")


def _dump(body: Body) -> str:
    document = {
        "version": BODY_VERSION,
        "per_expert": list(body.per_expert),
        "steps": [
            {"op": step.op, "args": list(step.args)}
            | ({"kwargs": dict(step.kwargs)} if step.kwargs else {})
            for step in body.steps
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _load(text: str) -> Body:
    try:
        document = json.loads(text)
        version = document["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BodyError(f"not a body: {error}") from error
    if version != BODY_VERSION:
        raise BodyError(
            f"body version {version} cannot be read by this release (it reads {BODY_VERSION}): "
            "use the release of modes-fx that wrote it"
        )
    try:
        steps = tuple(
            Step(s["op"], tuple(s["args"]), tuple(sorted(s.get("kwargs", {}).items())))
            for s in document["steps"]
        )
        return Body(tuple(document["per_expert"]), steps)
    except (KeyError, TypeError) as error:
        raise BodyError(f"not a body: {error!r} in {text[:200]}") from error


def _is_value(arg: Any) -> bool:
    return isinstance(arg, str) and not arg.startswith("p")


def _read_dtype(name: str, value: Any) -> Any:
    return getattr(torch, value) if name == "dtype" else value


@lru_cache(maxsize=256)
def _aten(name: str) -> Callable[..., torch.Tensor]:
    namespace, operation, overload = name.split(".")
    overloads: Callable[..., torch.Tensor] = getattr(
        getattr(getattr(torch.ops, namespace), operation), overload
    )
    return overloads
