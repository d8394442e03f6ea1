"""The samples that a command names: ``--data`` and what goes with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modes_fx.bench import demo_model
from modes_fx.calibration.encode import Chat
from modes_fx.calibration.loaders import (
    PUBLISHED,
    load_columns,
    load_messages,
    load_published,
)

DEMO = "demo"


@dataclass(frozen=True)
class NamedData:
    """Samples by name.

    Attributes:
        name: "demo"; a JSONL file; a published data set, "gqa" or "gqa:FOLDER"; or a folder of
            parquet files or a hub id.
        columns: what is in which column of a table.
        config: the part of a table.
        split: a part of that.
        samples: how many to draw.
        seed: of the draw.
    """

    name: str
    columns: Mapping[str, str]
    config: str | None
    split: str | None
    samples: int
    seed: int

    def load(self, *, others: bool = False) -> Sequence[Chat]:
        """Load the chats to calibrate on, or as many ``others``, to compare on.

        Raises:
            ValueError: there are no such samples; says what to name instead.
        """
        draw: dict[str, Any] = {"samples": self.samples, "seed": self.seed, "others": others}
        kind, _, source = self.name.partition(":")
        if self.name == DEMO:
            return _demo(self.samples, self.seed, others)
        if kind in PUBLISHED:
            return load_published(kind, source or None, split=self.split, **draw)
        if self.name.endswith((".jsonl", ".json")):
            return load_messages(Path(self.name), **draw)
        return load_columns(self.name, self.columns, config=self.config, split=self.split, **draw)


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """Read ``role=column`` pairs.

    Raises:
        ValueError: one is no such pair.
    """
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, pair in zip(given, pairs, strict=True) if not all(pair)]:
        raise ValueError(f"--column takes role=column, as in question=prompt, not {wrong[0]!r}")
    return {role: column for role, _, column in pairs}


def _demo(samples: int, seed: int, others: bool) -> list[Chat]:
    """Questions about training digits to calibrate on, and about held-out ones to compare on."""
    if others:
        kinds = len(demo_model.IMAGE_KINDS) + len(demo_model.TEXT_KINDS)
        questions = demo_model.heldout_questions(max(1, samples // kinds), seed)
    else:
        questions = demo_model.calibration_questions(samples, seed)
    return [demo_model.question_messages(question, with_answer=True) for question in questions]
