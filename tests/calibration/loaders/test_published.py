"""Published data sets in the layout of their hub copies become chats."""

import datasets
import pytest
from PIL import Image

from modes_fx.calibration.loaders import load_published

GREEN, RED = (Image.new("RGB", (8, 8), colour) for colour in ((0, 200, 0), (200, 0, 0)))


def save(path, columns, **features) -> None:
    table = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    path.parent.mkdir(parents=True)
    table.to_parquet(path)


@pytest.fixture
def gqa(tmp_path) -> str:
    questions = {
        "id": ["1", "2", "3"],
        "imageId": ["red", "green", "none"],
        "question": ["Is it red?", "Which colour?", "Where?"],
        "answer": ["yes", "green", "there"],
        "fullAnswer": ["Yes, it is.", "It is green.", "It is there."],
    }
    images = {"id": ["green", "red"], "image": [GREEN, RED]}
    part = "val-00000-of-00001.parquet"
    save(tmp_path / "val_balanced_instructions" / part, questions)
    save(tmp_path / "val_balanced_images" / part, images, image=datasets.Image())
    return str(tmp_path)


def parts(chat) -> list[dict]:
    return [part for message in chat for part in message["content"]]


def test_gqa_joins_questions_and_images(gqa) -> None:
    loaded = load_published("gqa", gqa)
    for place, (colour, answer) in enumerate(((RED, "yes"), (GREEN, "green"))):
        image, question, said = parts(loaded[place])
        assert image["image"].getpixel((0, 0)) == colour.getpixel((0, 0))
        assert question["text"].endswith("using a single word or phrase.")
        assert said["text"] == answer


def test_a_question_without_its_image_is_named(gqa) -> None:
    with pytest.raises(ValueError, match=r"sample 2 \(row 2 of .*there is no image 'none'"):
        load_published("gqa", gqa)[2]


def test_coco_takes_the_first_caption(tmp_path) -> None:
    columns = {
        "question_id": ["a.jpg", "b.jpg"],
        "image": [GREEN, None],
        "question": ["Please describe it.", "And this."],
        "answer": [["a green square", "a square"], ["nothing"]],
    }
    save(tmp_path / "data" / "val-00000-of-00001.parquet", columns, image=datasets.Image())
    loaded = load_published("coco", str(tmp_path))
    image, question, said = parts(loaded[0])
    assert image["image"].size == (8, 8)
    assert (question["text"], said["text"]) == ("Please describe it.", "a green square")
    with pytest.raises(ValueError, match=r"sample 1 .*has no image, though this is a data set of"):
        loaded[1]


@pytest.fixture
def video_mmmu(tmp_path) -> str:
    for number, track in enumerate(("Perception", "Comprehension", "Adaptation")):
        columns = {
            "id": [f"validation_Art_{number}"],
            "question": [f"What does the {track} teach?"],
            "options": [["Painting", "Music"]],
            "answer": ["B"],
        }
        if track == "Adaptation":
            columns["image"] = [GREEN]
        save(tmp_path / track / "test-00000-of-00001.parquet", columns)
    return str(tmp_path)


def test_video_mmmu_finds_its_videos_wherever_they_were_unpacked(video_mmmu, tmp_path) -> None:
    (tmp_path / "Art").mkdir()
    for number in (0, 2):
        (tmp_path / "Art" / f"validation_Art_{number}.mp4").touch()
    loaded = load_published("videommmu", video_mmmu)
    assert len(loaded) == 3
    video, question, said = parts(loaded[0])
    assert video == {"type": "video", "path": str(tmp_path / "Art" / "validation_Art_0.mp4")}
    assert "\nA. Painting\nB. Music\n" in question["text"]
    assert said["text"] == "B"
    assert [part["type"] for part in parts(loaded[2])] == ["video", "image", "text", "text"]
    with pytest.raises(ValueError, match=r"sample 1 .*no video validation_Art_1\.mp4"):
        loaded[1]


def test_video_mmmu_says_how_to_get_its_videos(video_mmmu) -> None:
    with pytest.raises(ValueError, match=r"published as zip files.*--data videommmu:FOLDER"):
        load_published("videommmu", video_mmmu)


def test_another_layout_is_said_so(tmp_path) -> None:
    save(tmp_path / "val_balanced_instructions" / "val-0.parquet", {"question": ["a"]})
    save(tmp_path / "val_balanced_images" / "val-0.parquet", {"id": ["a"]})
    with pytest.raises(ValueError, match=r"\(questions\) has no column 'imageId'; it has question"):
        load_published("gqa", str(tmp_path))
