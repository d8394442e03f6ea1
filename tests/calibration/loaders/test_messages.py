"""A JSONL of messages becomes chats; a line that cannot is named."""

import json

import pytest
from PIL import Image

from modes_fx.calibration.loaders import load_messages


def write(path, *records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def chat(content, answer="7") -> dict:
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    }


def test_paths_are_relative_to_the_file(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    shown = [{"type": "image", "image": "images/a.png"}, {"type": "text", "text": "what is it ?"}]
    frames = [{"type": "video", "video": ["images/a.png", "images/a.png"]}]
    far = [{"type": "image", "url": "https://example.org/a.png"}]
    write(tmp_path / "chats.jsonl", chat("1 plus 6 ?"), chat(shown), chat(frames), chat(far))
    text, image, video, address = load_messages(tmp_path / "chats.jsonl")
    absolute = str(tmp_path / "images" / "a.png")
    assert text[0]["content"] == "1 plus 6 ?"
    assert image[0]["content"][0] == {"type": "image", "image": absolute}
    assert image[0]["content"][1] == {"type": "text", "text": "what is it ?"}
    assert video[0]["content"][0]["video"] == [absolute, absolute]
    assert address[0]["content"] == far


def test_as_many_lines_as_asked_for_are_drawn_and_as_many_others(tmp_path) -> None:
    path = tmp_path / "chats.jsonl"
    write(path, *(chat(str(n)) for n in range(10)))
    drawn = [c[0]["content"] for c in load_messages(path, samples=4, seed=1)]
    again = [c[0]["content"] for c in load_messages(path, samples=4, seed=1)]
    others = [c[0]["content"] for c in load_messages(path, samples=4, seed=1, others=True)]
    assert drawn == again == sorted(drawn)
    assert len({*drawn, *others}) == 8
    with pytest.raises(ValueError, match=r"all 10 rows are calibrated on.*--samples 5"):
        load_messages(path, samples=10, others=True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{torn", "JSONDecodeError"),
        ('{"text": "no messages"}', "it is no"),
        ("[1, 2]", "it is no"),
        (json.dumps(chat([{"type": "image", "image": "gone.png"}])), r"no file .*gone\.png"),
    ],
)
def test_a_line_that_is_no_chat_is_named(tmp_path, line, reason) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(chat("a")) + "\n\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"sample 1 \(line 3 of .*chats.jsonl\).*{reason}"):
        load_messages(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl cannot be read"):
        load_messages(tmp_path / "none.jsonl")
