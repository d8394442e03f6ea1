"""``--data`` and what goes with it name samples."""

import json

import pytest

from modes_fx.cli.samples import NamedData, parse_columns


def named(name: str, samples: int = 28, **options) -> NamedData:
    fields = {"columns": {}, "config": None, "split": None, "seed": 0, **options}
    return NamedData(name, samples=samples, **fields)


def test_demo_names_the_demo_models_questions() -> None:
    chats, others = named("demo").load(), named("demo").load(others=True)
    assert len(chats) == len(others) == 28
    assert all(chat[-1]["role"] == "assistant" for chat in [*chats, *others])


def test_a_jsonl_file_is_one_of_messages(tmp_path) -> None:
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    (chat,) = named(str(path)).load()
    assert chat == messages


def test_a_published_data_set_may_be_in_a_folder(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file of val_balanced_instructions/val"):
        named(f"gqa:{tmp_path}").load()


def test_another_folder_is_one_of_tables(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no parquet file"):
        named(str(tmp_path)).load()


def test_columns_are_pairs() -> None:
    assert parse_columns(["question=prompt", "answer=a=b"]) == {
        "question": "prompt",
        "answer": "a=b",
    }
    with pytest.raises(ValueError, match=r"takes role=column, .*not 'question'"):
        parse_columns(["question"])
