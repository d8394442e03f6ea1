"""The errors of the front door, and how their messages list names."""

from collections.abc import Iterable


class PolicyError(ValueError):
    """A policy is malformed, cannot be read, or does not belong to the model at hand."""


class MatchError(RuntimeError):
    """A graph cannot be compiled as asked: strict matching failed, or a compiler is missing."""


def listed(names: Iterable[str], limit: int = 4) -> str:
    """Lists names in order for a message: the first ones, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
