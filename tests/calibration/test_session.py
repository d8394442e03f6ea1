"""A session prepares the samples, and goes on only with what it was begun with."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from accelerate import dispatch_model

from modes_fx.attach import find_expert_modules, is_attached
from modes_fx.bench.demo_model import calibration_questions, load_model, question_messages
from modes_fx.calibration import ChatBatches, Evaluator, JournalError, Request
from modes_fx.calibration.evaluator import keep_all_policy
from modes_fx.calibration.removals import removed_theta
from modes_fx.calibration.session import as_batches, open_session
from modes_fx.vocabulary import Modality
from tests.tiny import save_untrained_demo


def removal(model) -> Request:
    return Request.of({next(iter(find_expert_modules(model))): removed_theta(["vision"])})


def measured(model, batches, folder=None, **options):
    with open_session(model, batches, keep_all_policy(model), folder=folder, **options) as session:
        return session, session.evaluator.measure(removal(model))


def test_a_session_goes_on_with_the_same(model, batches, tmp_path) -> None:
    first, found = measured(model, batches, tmp_path)
    later, again = measured(model, batches, tmp_path)
    assert (first.resumed, later.resumed) == (0, 1)
    assert later.created == first.created
    assert again.to_dict() == found.to_dict()
    assert later.evaluator.ledger.run == 0
    assert later.tokens[Modality.VISION] == 48
    assert not is_attached(model)


def interrupted(model, batches, folder, interrupt: Callable[[Evaluator], None]) -> None:
    with open_session(model, batches, keep_all_policy(model), folder=folder) as session:
        session.evaluator.measure(removal(model))
        interrupt(session.evaluator)


def test_predictions_are_kept_while_it_is_not_done(model, batches, tmp_path) -> None:
    def stop(evaluator: Evaluator) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(model, batches, tmp_path, stop)
    kept = list((tmp_path / "journal").glob("logits-*/*.safetensors"))
    assert len(kept) == len(batches)
    measured(model, batches, tmp_path)
    assert not list((tmp_path / "journal").glob("logits-*"))


def test_one_run_at_a_time_works_in_a_folder(model, batches, tmp_path) -> None:
    policy = keep_all_policy(model)

    def second_run() -> str:
        with (
            pytest.raises(JournalError) as refused,
            open_session(model, batches, policy, folder=tmp_path),
        ):
            pass
        return str(refused.value)

    with open_session(model, batches, policy, folder=tmp_path), ThreadPoolExecutor(1) as other:
        message = other.submit(second_run).result()
    assert "another run is calibrating into" in message
    assert str(tmp_path) in message
    with open_session(model, batches, policy, folder=tmp_path):
        pass


def other_weights(model, batches):
    changed = copy.deepcopy(model)
    changed.lm_head.weight.data.add_(1)
    return changed, batches, {}


def other_dtype(model, batches):
    return copy.deepcopy(model).to(torch.bfloat16), batches, {}


def other_order(model, batches):
    return model, batches[::-1], {}


def other_images(model, batches):
    inputs = dict(batches[1].inputs)
    inputs["pixel_values"] = inputs["pixel_values"] + 1
    return model, [batches[0], replace(batches[1], inputs=inputs)], {}


def fewer(model, batches):
    return model, [replace(batches[0], samples=range(6))], {}


def other_compiler(model, batches):
    return model, batches, {"compiler": "inductor"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (other_weights, "weights was"),
        (other_dtype, 'dtype was "float32", is "bfloat16"'),
        (other_order, "data was"),
        (other_images, "data was"),
        (fewer, "samples was 12, is 6; batches was 2, is 1"),
        (other_compiler, 'compiler was "eager", is "inductor"'),
    ],
)
def test_something_else_is_refused_by_name(model, batches, tmp_path, change, field) -> None:
    measured(model, batches, tmp_path)
    kept = (tmp_path / "journal" / "journal.jsonl").read_bytes()
    changed, others, options = change(model, batches)
    with pytest.raises(JournalError, match=rf"journal of another calibration: .*{field}"):
        measured(changed, others, tmp_path, **options)
    assert (tmp_path / "journal" / "journal.jsonl").read_bytes() == kept


def test_a_model_on_several_devices_is_measured_alike(model, batches) -> None:
    spread = copy.deepcopy(model)
    places = {name: "cpu" for name, _ in spread.model.language_model.named_children()}
    device_map = {f"model.language_model.{name}": place for name, place in places.items()}
    dispatch_model(
        spread, {**device_map, "model.visual": "cpu", "lm_head": "cpu"}, force_hooks=True
    )
    assert hasattr(spread, "_hf_hook")
    _, found = measured(spread, batches)
    _, expected = measured(model, batches)
    assert found.kl == pytest.approx(expected.kl, rel=1e-6)
    assert found.skip_ratio == expected.skip_ratio


def test_a_nan_names_the_sample_and_keeps_what_was_measured(model, batches, tmp_path) -> None:
    model = copy.deepcopy(model)
    healthy = model.lm_head.weight.detach().clone()

    def break_down(evaluator: Evaluator) -> None:
        model.lm_head.weight.data.fill_(torch.nan)
        evaluator.measure(replace(removal(model), min_k=1))

    with pytest.raises(ValueError, match=r"logits for sample \d+ are NaN"):
        interrupted(model, batches, tmp_path, break_down)
    model.lm_head.weight.data.copy_(healthy)
    session, _ = measured(model, batches, tmp_path)
    assert (session.resumed, session.evaluator.ledger.run) == (1, 0)


def test_chats_are_laid_out_with_half_of_them_held_back() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    batches = as_batches(None, [chat] * 6, 2)
    assert isinstance(batches, ChatBatches)
    assert [held_back for _, held_back in batches.layout] == [False, False, True, True]


def test_batches_stay_as_they_are(batches) -> None:
    assert as_batches(None, batches, 2) == batches


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_batch_size_changes_nothing_but_rounding(tmp_path_factory, batch_size) -> None:
    model, processor = load_model(folder=save_untrained_demo(tmp_path_factory.mktemp("model")))
    questions = calibration_questions(9)
    chats = [question_messages(question, with_answer=True) for question in questions]
    found = [measured(model, as_batches(processor, chats, size))[1] for size in (9, batch_size)]
    together, apart = (measurement.difference for measurement in found)
    assert apart.tokens.tolist() == together.tokens.tolist()
    torch.testing.assert_close(apart.kl_sums, together.kl_sums, rtol=1e-3, atol=1e-6)
    assert found[1].skip_ratio_by_modality == found[0].skip_ratio_by_modality
