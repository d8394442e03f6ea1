"""Answers on disk as soon as they are given, so that an evaluation goes on where it was cut off."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

AT_ONCE = 8
"""Batches that are answered before their answers are written."""


class Journal:
    """The answers of one model, policy and target: a line of JSON each.

    An answer is found again by what was asked: question, document, task, and how to generate.
    """

    def __init__(self, path: Path) -> None:
        """Read what there is; a last line that was cut off is left out."""
        self._path = path
        self._answers: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            text = path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:
                    continue
                self._answers[key] = answer

    def answer(
        self,
        requests: Sequence[Any],
        generate: Callable[[list[Any]], Sequence[Any]],
        batch_size: int,
    ) -> list[str]:
        """Return an answer to each of lmms-eval's requests; only new ones are generated.

        Args:
            requests: whose ``args`` say what is asked.
            generate: answers requests in order.
            batch_size: how many it answers at once.
        """
        keys = [_key(request) for request in requests]
        new = [(k, r) for k, r in zip(keys, requests, strict=True) if k not in self._answers]
        size = AT_ONCE * batch_size
        for start in range(0, len(new), size):
            some = new[start : start + size]
            answers = generate([request for _, request in some])
            with self._path.open("a", encoding="utf-8") as file:
                for (key, _), answer in zip(some, answers, strict=True):
                    text = str(getattr(answer, "text", answer))
                    self._answers[key] = text
                    file.write(json.dumps([key, text], ensure_ascii=False) + "\n")
        return [self._answers[key] for key in keys]


def _key(request: Any) -> str:
    # Functions that fetch images are told apart by their address, which differs from run to run.
    asked = [value for value in request.args if not callable(value)]
    return json.dumps(asked, sort_keys=True, default=str)
