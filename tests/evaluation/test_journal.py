"""Answers survive what cuts an evaluation off."""

from types import SimpleNamespace

import pytest

from modes_fx.evaluation.journal import AT_ONCE, Journal


def requests(count: int, **options):
    return [SimpleNamespace(args=("", None, options, i, "task", "test")) for i in range(count)]


def echo(some):
    return [f"answer {request.args[3]}" for request in some]


def test_a_run_goes_on_where_it_was_cut_off(tmp_path) -> None:
    path, calls = tmp_path / "deep" / "answers.jsonl", []

    def cut_off(some):
        calls.append(len(some))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return echo(some)

    with pytest.raises(KeyboardInterrupt):
        Journal(path).answer(requests(20), cut_off, batch_size=1)
    answers = Journal(path).answer(
        requests(20), lambda some: calls.append(len(some)) or echo(some), 2
    )
    assert answers == [f"answer {i}" for i in range(20)]
    assert calls == [AT_ONCE, AT_ONCE, 20 - AT_ONCE]


def test_other_options_are_other_questions(tmp_path) -> None:
    journal = Journal(tmp_path / "answers.jsonl")
    journal.answer(requests(2), echo, 1)
    asked = []
    journal.answer(requests(2, max_new_tokens=5), lambda some: asked.extend(some) or echo(some), 1)
    assert len(asked) == 2


def test_a_line_that_was_cut_off_is_asked_again(tmp_path) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path).answer(requests(2), echo, 1)
    path.write_text(path.read_text()[:-8])
    asked = []
    Journal(path).answer(requests(2), lambda some: asked.extend(some) or echo(some), 1)
    assert [request.args[3] for request in asked] == [1]
    assert Journal(path).answer(requests(2), pytest.fail, 1) == ["answer 0", "answer 1"]


def test_results_with_token_counts_give_their_text(tmp_path) -> None:
    journal = Journal(tmp_path / "answers.jsonl")
    said = journal.answer(requests(1), lambda some: [SimpleNamespace(text="seven")], 1)
    assert said == ["seven"]
