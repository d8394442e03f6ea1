"""Chats that are read when they are asked for, and what to call them in a message."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from modes_fx.calibration.encode import Chat


class Samples(Sequence[Chat]):
    """Chats of a data set.

    Attributes:
        name: of the data set, for the policy's provenance.
    """

    def __init__(
        self, name: str, rows: Sequence[int], read: Callable[[int], Chat], unit: str = "row"
    ) -> None:
        """Take the chosen rows of a data set.

        Args:
            name: of the data set.
            rows: their numbers in it.
            read: makes the chat of a row.
            unit: what the data set calls a row.
        """
        self.name = name
        self._rows, self._read, self._unit = rows, read, unit

    def where(self, place: int) -> str:
        """Say in words where a chat comes from."""
        return f"sample {place} ({self._unit} {self._rows[place]} of {self.name})"

    def __len__(self) -> int:
        """Return how many chats there are."""
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Chat: ...

    @overload
    def __getitem__(self, place: slice) -> list[Chat]: ...

    def __getitem__(self, place: int | slice) -> Chat | list[Chat]:
        """Read a chat.

        Raises:
            ValueError: the row makes no chat; says which and why.
        """
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        row = self._rows[place]
        try:
            return self._read(row)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.where(place)} cannot be read: {type(error).__name__}: {error}. Mend it or "
                "leave it out"
            ) from error

    def __iter__(self) -> Iterator[Chat]:
        """Read all chats, one after another."""
        return (self[place] for place in range(len(self)))


def draw(total: int, wanted: int | None, seed: int, *, others: bool = False) -> list[int]:
    """Draw so many of the numbers below ``total``, ascending; all of them where that is too many.

    The draw depends on nothing but the arguments, so that every process draws the same.

    Args:
        total: how many rows there are.
        wanted: how many of them to draw.
        seed: of the draw.
        others: draw as many again, none of which is drawn without this.

    Raises:
        ValueError: there are none left to draw.
    """
    shuffled = list(range(total))
    if wanted is None or wanted >= total:
        chosen, left = shuffled, []
    else:
        random.Random(seed).shuffle(shuffled)
        chosen, left = shuffled[:wanted], shuffled[wanted : 2 * wanted]
    if others and not left:
        raise ValueError(
            f"all {total} rows are calibrated on, so none are left to compare on: calibrate on "
            f"fewer (--samples {max(1, total // 2)})"
        )
    return sorted(left if others else chosen)


def user_and_answer(
    question: str, answer: str, media: Sequence[dict[str, object]] = ()
) -> list[dict[str, object]]:
    """Write one turn: images or a video, a question, and the answer."""
    content = [*media, {"type": "text", "text": question}]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
