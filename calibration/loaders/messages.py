"""A file of chats: one JSON object a line, with its messages."""

import json
from pathlib import Path
from typing import Any

from modes_fx.calibration.encode import Chat
from modes_fx.calibration.loaders.samples import Samples, draw

FILES = ("image", "video", "audio", "path", "url")
"""The keys under which a part of a message names a file."""


def load_messages(
    path: Path, *, samples: int | None = None, seed: int = 0, others: bool = False
) -> Samples:
    """Load chats from a JSONL file.

    Each line is ``{"messages": [...]}`` as ``apply_chat_template`` takes them, the last one the
    assistant's. Paths of images and videos are relative to the file.

    Args:
        path: of the file.
        samples: how many lines to draw; None takes all.
        seed: of the draw.
        others: draw as many that are not drawn without this, to compare on.

    Raises:
        ValueError: there is no such file, a line is not such an object, or names a file that is
            not there; says which line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    numbered = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    numbers = list(numbered)

    def read(number: int) -> Chat:
        return _chat(path, numbered[number])

    chosen = [numbers[place] for place in draw(len(numbers), samples, seed, others=others)]
    loaded = Samples(str(path), chosen, read, unit="line")
    for place in range(len(loaded)):
        loaded[place]
    return loaded


def _chat(path: Path, line: str) -> Chat:
    record = json.loads(line)
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages
    ):
        raise ValueError('it is no {"messages": [{"role": ..., "content": ...}, ...]}')
    return [{**message, "content": _content(path, message["content"])} for message in messages]


def _content(path: Path, content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        {key: _located(path, value) if key in FILES else value for key, value in part.items()}
        for part in content
    ]


def _located(path: Path, value: Any) -> Any:
    """Make the path of a file absolute; addresses and lists of frames as well."""
    if isinstance(value, list):
        return [_located(path, item) for item in value]
    if not isinstance(value, str) or "://" in value or value.startswith("data:"):
        return value
    file = (path.parent / value).resolve()
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    return str(file)
