"""Every message that the package raises or warns with, found by reading its sources."""

import ast
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

PACKAGES = ("modes_fx", "modes_fx.passes", "modes_fx.calibration", "modes_fx.export")
"""What a user's program runs; a package that is inside another one is not listed by it."""
GAP = "…"
"""Stands for what a message fills in."""

SECTIONS = MappingProxyType(
    {
        "modes_fx.policy": "Policies",
        "modes_fx.calibration": "Calibrating",
        "modes_fx.export": "Exporting",
        "modes_fx.passes": "Finding and rewriting layers",
        "modes_fx.kernels": "Kernels",
        "modes_fx.cli": "The command line",
        "modes_fx": "Attaching, compiling and calling",
    }
)
"""By the beginning of a module's name, the first that fits."""

HEAD = f"""\
# Messages

<!-- Made by `make docs` from the sources; do not edit. -->

Every error and warning of this package, by what was being done. A message says what is wrong, with
the numbers, and what to do next; `{GAP}` stands for what it fills in: search for the words around
it. [Troubleshooting](troubleshooting.md) goes by symptom instead.

`NoMatchError`, `UnfusableError`, `BodyError` and `UnsupportedBodyError` do not reach your program:
their texts are the reasons that `modes-fx explain` and warnings give for a layer that runs in
another way.
"""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        module: that raises it.
        kind: the class of the error, or "warning".
        text: with ``GAP`` where something is filled in.
    """

    module: str
    kind: str
    text: str


def messages() -> list[Message]:
    """Return all messages, by module and in the order of its lines; equal ones once."""
    found = [
        message
        for package in PACKAGES
        for module, path in _modules(package)
        for message in messages_in(path.read_text(encoding="utf-8"), module)
    ]
    return list(dict.fromkeys(found))


def messages_in(source: str, module: str) -> Iterator[Message]:
    """Yield the messages that a source spells out where it raises or warns.

    Args:
        source: of a module.
        module: its name.
    """
    placed = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt | ast.expr))
    for node in sorted(placed, key=lambda node: (node.lineno, node.col_offset)):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = ast.unparse(call.func).rpartition(".")[2]
        if isinstance(node, ast.Raise):
            kind = name
        elif name in ("warn", "_warn", "warn_once"):
            kind = "warning"
        else:
            continue
        if text := _text(call.args[0]):
            yield Message(module, kind, text)


def render_messages(found: Sequence[Message]) -> str:
    """Return the page.

    Args:
        found: from :func:`messages`.
    """
    lines = [HEAD]
    for beginning, title in SECTIONS.items():
        own = [message for message in found if _section(message.module) == beginning]
        if own:
            lines.append(f"## {title}\n")
            lines += [f"- {_escaped(m.text)} (`{m.kind}`, `{m.module}`)" for m in own]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _text(node: ast.expr) -> str:
    """Return a message as far as it is spelled out; empty where none of it is."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part) if isinstance(part, ast.Constant) else GAP for part in node.values]
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or GAP) + (_text(node.right) or GAP)
    return ""


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the name and the source of every module that lies in a package's own folder."""
    for folder in map(Path, importlib.import_module(package).__path__):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


def _section(module: str) -> str:
    return next(beginning for beginning in SECTIONS if module.startswith(beginning))


def _escaped(text: str) -> str:
    for special in "\\`*_<[":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
