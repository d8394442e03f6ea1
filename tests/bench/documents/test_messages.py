"""docs/messages.md holds every message of the sources, and the sources spell all of them out."""

import ast
from pathlib import Path

from modes_fx.bench.documents.messages import (
    GAP,
    Message,
    messages,
    messages_in,
    render_messages,
)

DOCS = Path(__file__).parents[3] / "docs"

SOURCE = """
def check(path, count):
    if count < 0:
        raise ValueError(f"{path} has {count:d} layers: name " + "another")
    warnings.warn("nothing is skipped", stacklevel=2)
    raise problem
    raise KeyError(path)
"""


def test_what_is_filled_in_becomes_a_gap() -> None:
    assert list(messages_in(SOURCE, "modes_fx.one")) == [
        Message("modes_fx.one", "ValueError", f"{GAP} has {GAP} layers: name another"),
        Message("modes_fx.one", "warning", "nothing is skipped"),
    ]


def test_messages_are_grouped_by_what_was_being_done() -> None:
    page = render_messages(
        [
            Message("modes_fx.attach", "ValueError", "one"),
            Message("modes_fx.calibration.data", "warning", "two [T] `x`"),
        ]
    )
    assert page.index("## Calibrating") < page.index("## Attaching")
    assert "- two \\[T] \\`x\\` (`warning`, `modes_fx.calibration.data`)" in page


def test_errors_of_ours_are_among_them() -> None:
    found = messages()
    assert len(found) > 200
    assert any(m.kind == "PolicyError" and "was not calibrated for target" in m.text for m in found)
    assert any(m.module.startswith("modes_fx.passes") for m in found)


def test_a_message_is_spelled_out_where_it_is_raised() -> None:
    """One made elsewhere would be missing from the page without anybody noticing."""
    root = DOCS.parent
    for path in (path for folder in ("passes", "export") for path in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                assert isinstance(node.exc.args[0], ast.Constant | ast.JoinedStr | ast.BinOp), (
                    f"{path}:{node.lineno}"
                )


def test_the_page_is_current() -> None:
    page = (DOCS / "messages.md").read_text(encoding="utf-8")
    assert page == render_messages(messages()), "run `make docs`"
