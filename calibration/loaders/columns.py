"""Any table of questions and answers, by the names of its columns."""

from collections.abc import Mapping
from typing import Any

from modes_fx.calibration.encode import Chat
from modes_fx.calibration.loaders.samples import Samples, draw, user_and_answer
from modes_fx.calibration.loaders.tables import open_table, require_columns

MEDIA = ("image", "video")
ROLES = ("question", "answer", *MEDIA, "messages")


def load_columns(
    source: str,
    columns: Mapping[str, str] | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    others: bool = False,
) -> Samples:
    """Load chats from a table.

    Args:
        source: a local folder or file of parquet, or the id of a hub data set.
        columns: what is in which column: "question" and "answer", and "image" or "video" where
            there are any (a column may hold a list of them); or "messages", whole chats. A role
            that is not named is taken from the column of its own name, if there is one.
        config: the part of the data set.
        split: a part of that.
        samples: how many rows to draw; None takes all.
        seed: of the draw.
        others: draw as many that are not drawn without this, to compare on.

    Raises:
        ValueError: there is no such data set or column, or a role that is not one.
    """
    table = open_table(source, config, split)
    named = dict(columns or {})
    if unknown := [role for role in named if role not in ROLES]:
        raise ValueError(f"a column holds one of {', '.join(ROLES)}, not {unknown[0]!r}")
    own = {role: role for role in ROLES if role in table.column_names and role not in named}
    found = {**own, **named} if "messages" not in named else named
    needed = ["messages"] if "messages" in found else ["question", "answer"]
    require_columns(table, [*(found.get(role, role) for role in needed), *found.values()], source)

    def read(row: int) -> Chat:
        return _chat(table[row], found)

    return Samples(source, draw(len(table), samples, seed, others=others), read)


def _chat(row: Mapping[str, Any], columns: Mapping[str, str]) -> Chat:
    if "messages" in columns:
        messages: Chat = row[columns["messages"]]
        return messages
    media = []
    for kind in MEDIA:
        if kind in columns:
            value = row[columns[kind]]
            if value is None or (isinstance(value, list) and not value):
                raise ValueError(f"the column {columns[kind]!r} holds no {kind}")
            media += [{"type": kind, kind: item} for item in _as_list(value)]
    answer = _as_list(row[columns["answer"]])
    if not answer or answer[0] is None:
        raise ValueError(f"the column {columns['answer']!r} holds no answer")
    return user_and_answer(str(row[columns["question"]]), str(answer[0]), media)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
