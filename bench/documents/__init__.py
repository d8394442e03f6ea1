"""Pages of the documentation that are made from the code, so that they cannot differ from it."""

from modes_fx.bench.documents.commands import command_reference
from modes_fx.bench.documents.messages import Message, messages, render_messages

__all__ = ["Message", "command_reference", "messages", "render_messages"]
