"""Any table of questions and answers becomes chats, by the names of its columns."""

import datasets
import pytest
from PIL import Image

from modes_fx.calibration.loaders import load_columns

IMAGE = Image.new("RGB", (8, 8), (10, 200, 30))


def saved(folder, columns, **features) -> str:
    table = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def pictures(tmp_path) -> str:
    columns = {
        "prompt": ["what is it ?", "and this ?"],
        "reply": [["a green square", "a square"], ["nothing"]],
        "picture": [IMAGE, None],
    }
    return saved(tmp_path / "pictures", columns, picture=datasets.Image())


NAMED = {"question": "prompt", "answer": "reply", "image": "picture"}


def test_columns_are_found_by_the_names_given(pictures) -> None:
    loaded = load_columns(pictures, NAMED, split="train")
    question, answer = loaded[0]
    assert question["content"][0]["image"].getpixel((0, 0)) == (10, 200, 30)
    assert question["content"][1] == {"type": "text", "text": "what is it ?"}
    assert answer["content"] == [{"type": "text", "text": "a green square"}]


def test_a_row_without_its_image_is_named(pictures) -> None:
    loaded = load_columns(pictures, NAMED)
    with pytest.raises(ValueError, match=r"sample 1 \(row 1 of .*\).*'picture' holds no image"):
        loaded[1]


def test_columns_of_the_usual_names_need_no_naming(tmp_path) -> None:
    source = saved(tmp_path / "plain", {"question": ["1 plus 6 ?"], "answer": ["7"]})
    (chat,) = load_columns(source)
    assert [part["text"] for message in chat for part in message["content"]] == ["1 plus 6 ?", "7"]


def test_whole_chats_may_be_in_one_column(tmp_path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    source = saved(tmp_path / "chats", {"talk": [chat]})
    (loaded,) = load_columns(source, {"messages": "talk"})
    assert loaded == chat


def test_a_wrong_column_is_answered_with_those_there_are(pictures) -> None:
    with pytest.raises(ValueError, match=r"no column 'photo'; it has prompt, reply, picture"):
        load_columns(pictures, {**NAMED, "image": "photo"})
    with pytest.raises(ValueError, match=r"no column 'question'.*--column question="):
        load_columns(pictures)
    with pytest.raises(ValueError, match=r"a column holds one of question, .*not 'foto'"):
        load_columns(pictures, {"foto": "picture"})


def test_a_folder_without_tables_is_said_so(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file; it holds none at all"):
        load_columns(str(tmp_path))
    saved(tmp_path / "some", {"question": ["a"], "answer": ["b"]})
    with pytest.raises(ValueError, match=r"no parquet file of test; it holds train-00000"):
        load_columns(str(tmp_path / "some"), split="test")
