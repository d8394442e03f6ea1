"""Numbers for symbolic sizes, so that shapes can be compared and a region be run.

A size that depends on data, as the length of ``x[mask]`` does, has no value while a model is
captured. It gets a made-up one: which it is does not matter, as long as sizes that are the same, or
multiples of one another, stay so, and different ones differ.
"""

from math import lcm

import sympy  # type: ignore[import-untyped]
import torch
from torch.utils._sympy.functions import FloorDiv, Mod

_MADE_UP = (5, 7, 11, 13)


def is_known(size: int | torch.SymInt) -> bool:
    """Return whether a size had a value when it was captured."""
    return isinstance(size, int) or bool(size.node.has_hint())


def value_of(size: int | torch.SymInt) -> int:
    """Return an integer, the value a symbolic one had when captured, or a made-up one."""
    if isinstance(size, int):
        return size
    if is_known(size):
        return int(size.node.hint)
    known = size.node.shape_env.backed_var_to_val
    expression = size.node.expr.xreplace(known)
    return int(expression.xreplace(_made_up_values(expression)))


def _made_up_values(expression: sympy.Expr) -> dict[sympy.Symbol, sympy.Integer]:
    """Give every unknown a value that all divisions by a number in an expression leave whole."""
    divisors = (part.args[1] for part in expression.atoms(FloorDiv, Mod))
    whole = lcm(*(int(divisor) for divisor in divisors if divisor.is_Integer))
    unknowns = sorted(expression.free_symbols, key=str)
    return {
        symbol: sympy.Integer(whole * _MADE_UP[_number(symbol) % len(_MADE_UP)])
        for symbol in unknowns
    }


def _number(symbol: sympy.Symbol) -> int:
    return int("".join(filter(str.isdigit, symbol.name)) or 0)
