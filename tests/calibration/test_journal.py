"""A journal keeps what was put, whatever happens meanwhile, for the same calibration only."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modes_fx.calibration import Journal, JournalError

BELONGS = {"model": "abc", "samples": 8, "versions": {"torch": "2.13.0"}}
RECORDS = {
    f"key {n}": {"result": {"kl": [n / 3, 1e-300], "skipped": float("inf")}} for n in range(4)
}


@pytest.fixture
def journal(tmp_path) -> Journal:
    journal = Journal(tmp_path, BELONGS)
    for key, fields in RECORDS.items():
        journal.put(key, **fields)
    return journal


def test_what_was_put_is_found_again_to_the_last_bit(journal) -> None:
    again = Journal(journal.folder, BELONGS)
    assert again.created == journal.created
    assert again.resumed == 4
    for key, fields in RECORDS.items():
        assert key in again
        assert again[key] == {"key": key, **fields}
    assert "key 9" not in again


@settings(max_examples=60)
@given(st.data())
def test_a_journal_cut_off_anywhere_keeps_its_whole_lines(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder, BELONGS)
    for key, fields in RECORDS.items():
        journal.put(key, **fields)
    path = folder / "journal.jsonl"
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    again = Journal(folder, BELONGS)
    whole = max(content[:cut].count(b"\n") - 1, 0)
    assert list(again.records) == list(RECORDS)[:whole]
    for key in list(RECORDS)[whole:]:
        again.put(key, **RECORDS[key])
    assert Journal(folder, BELONGS).records == journal.records


def test_another_calibration_is_refused_by_the_fields_that_differ(journal) -> None:
    other = {**BELONGS, "samples": 9, "versions": {"torch": "2.14.0"}}
    with pytest.raises(JournalError) as refused:
        Journal(journal.folder, other)
    assert 'samples was 8, is 9; versions was {"torch": "2.13.0"}, is' in str(refused.value)
    assert "model" not in str(refused.value)
    with pytest.raises(JournalError, match="more was null, is 1"):
        Journal(journal.folder, {**BELONGS, "more": 1})


def test_a_line_that_is_damaged_is_said_so(journal) -> None:
    path = journal.folder / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]]))
    with pytest.raises(JournalError, match=r"is damaged .*remove it to calibrate anew"):
        Journal(journal.folder, BELONGS)


def test_a_journal_of_another_version_is_refused(journal) -> None:
    path = journal.folder / "journal.jsonl"
    header, *rest = path.read_text().splitlines(keepends=True)
    newer = json.dumps({**json.loads(header), "version": 2}) + "\n"
    path.write_text(newer + "".join(rest))
    with pytest.raises(JournalError, match="has version 2, this modes-fx reads 1"):
        Journal(journal.folder, BELONGS)


def test_a_full_disk_loses_nothing_that_was_put(journal, monkeypatch) -> None:
    written = os.write

    def half_and_no_more(descriptor: int, content: bytes) -> int:
        if len(content) > 40:
            return written(descriptor, content[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half_and_no_more)
    with pytest.raises(JournalError, match=r"No space left on device.*run the same again"):
        journal.put("too much", value=list(range(15)))
    monkeypatch.undo()
    assert "too much" not in journal
    journal.put("enough room", value=1)
    assert list(Journal(journal.folder, BELONGS).records) == [*RECORDS, "enough room"]


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal", BELONGS)


def test_tensors_are_saved_whole(journal) -> None:
    saved = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    journal.save_tensors("some", saved)
    found = journal.tensors("some")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert journal.tensors("others") is None
    assert not list(journal.folder.glob("*.partial"))


def test_a_full_disk_leaves_no_part_of_a_file(journal, monkeypatch) -> None:
    def fail(tensors, path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modes_fx.calibration.journal.save_file", fail)
    with pytest.raises(JournalError, match=r"No space left.*What was measured before is kept"):
        journal.save_tensors("some", {"a": torch.ones(2)})
    assert [path.name for path in journal.folder.iterdir()] == ["journal.jsonl"]
