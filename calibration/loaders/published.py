"""Data sets that skipping was calibrated on in the literature, laid out as they are published.

The layouts are those of their copies on the hub: GQA keeps questions and images in two parts that
are joined by the image's id, COCO's captions are lists, VideoMMMU's videos are files of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modes_fx.calibration.encode import Chat
from modes_fx.calibration.loaders.samples import Samples, draw, user_and_answer
from modes_fx.calibration.loaders.tables import open_table, require_columns

GQA_PROMPT = "\nAnswer the question using a single word or phrase."
CAPTION_PROMPT = "Describe the image in one sentence."
CHOICE_PROMPT = "\nAnswer with the option's letter."
TRACKS = ("Perception", "Comprehension", "Adaptation")

Reader = Callable[[int], Chat]


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        source: its id on the hub.
        split: the part that is taken by default.
        open: opens it: (source, split) to (how many rows, how to read one).
    """

    source: str
    split: str
    open: Callable[[str, str], tuple[int, Reader]]


def load_published(
    name: str,
    source: str | None = None,
    *,
    split: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    others: bool = False,
) -> Samples:
    """Load chats from a published data set.

    Args:
        name: a key of ``PUBLISHED``.
        source: a local folder with its files, or another id on the hub; None: its own id.
        split: the part to take; None: the usual one.
        samples: how many rows to draw; None takes all.
        seed: of the draw.
        others: draw as many that are not drawn without this, to compare on.

    Raises:
        ValueError: it cannot be loaded, or is laid out differently; says how.
    """
    published = PUBLISHED[name]
    total, read = published.open(source or published.source, split or published.split)
    return Samples(source or published.source, draw(total, samples, seed, others=others), read)


def _open_gqa(source: str, split: str) -> tuple[int, Reader]:
    questions = open_table(source, f"{split}_balanced_instructions", split)
    images = open_table(source, f"{split}_balanced_images", split)
    require_columns(questions, ("imageId", "question", "answer"), f"{source} (questions)")
    require_columns(images, ("id", "image"), f"{source} (images)")
    row_of = {key: row for row, key in enumerate(images["id"])}

    def read(row: int) -> Chat:
        entry = questions[row]
        if entry["imageId"] not in row_of:
            raise ValueError(f"there is no image {entry['imageId']!r}")
        image = _present(images[row_of[entry["imageId"]]]["image"])
        media = [{"type": "image", "image": image}]
        return user_and_answer(entry["question"] + GQA_PROMPT, entry["answer"], media)

    return len(questions), read


def _open_coco(source: str, split: str) -> tuple[int, Reader]:
    table = open_table(source, None, split)
    require_columns(table, ("image", "answer"), source)

    def read(row: int) -> Chat:
        entry = table[row]
        captions = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
        if not captions:
            raise ValueError("it has no caption")
        media = [{"type": "image", "image": _present(entry["image"])}]
        return user_and_answer(entry.get("question") or CAPTION_PROMPT, captions[0], media)

    return len(table), read


def _open_video_mmmu(source: str, split: str) -> tuple[int, Reader]:
    videos = {path.stem: path for path in Path(source).rglob("*.mp4")}
    if not videos:
        raise ValueError(
            f"there are no videos in {source!r}: they are published as zip files, so download the "
            "data set (hf download lmms-lab/VideoMMMU --repo-type dataset --local-dir FOLDER), "
            "unpack them in that folder, and name it: --data videommmu:FOLDER"
        )
    tables = [open_table(source, track, split) for track in TRACKS]
    for table, track in zip(tables, TRACKS, strict=True):
        require_columns(table, ("id", "question", "options", "answer"), f"{source} ({track})")
    places = [(table, row) for table in tables for row in range(len(table))]

    def read(row: int) -> Chat:
        table, place = places[row]
        entry = table[place]
        if entry["id"] not in videos:
            raise ValueError(f"there is no video {entry['id']}.mp4 in {source}")
        media: list[dict[str, object]] = [{"type": "video", "path": str(videos[entry["id"]])}]
        if entry.get("image") is not None:
            media.append({"type": "image", "image": entry["image"]})
        return user_and_answer(_with_options(entry), str(entry["answer"]), media)

    return len(places), read


def _with_options(entry: Mapping[str, Any]) -> str:
    if not entry["options"]:
        return str(entry["question"])
    lettered = [f"{chr(ord('A') + n)}. {option}" for n, option in enumerate(entry["options"])]
    return "\n".join([entry["question"], *lettered]) + CHOICE_PROMPT


def _present(image: Any) -> Any:
    if image is None:
        raise ValueError("it has no image, though this is a data set of images")
    return image


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "gqa": Published("lmms-lab/GQA", "val", _open_gqa),
        "coco": Published("lmms-lab/COCO-Caption2017", "val", _open_coco),
        "videommmu": Published("lmms-lab/VideoMMMU", "test", _open_video_mmmu),
    }
)
