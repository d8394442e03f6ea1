"""alpha is what removing a layer's experts does to the answers, measured the slow way too."""

import pytest
import torch

from modes_fx.attach import find_expert_modules
from modes_fx.calibration.alpha import measure_alpha, normalise_alpha
from modes_fx.calibration.data import token_codes
from modes_fx.vocabulary import CALIBRATED


@pytest.fixture(scope="module")
def brute_force(model, reference):
    """Alpha by zeroing what the experts of the unmodified model put out."""

    def kl(path: str, modalities: list[str]) -> float:
        codes = {}
        removed = torch.tensor([CALIBRATED[name] for name in modalities])

        def remember(module, args, kwargs) -> None:
            codes["now"] = token_codes(module, kwargs)

        def zero(module, args, output):
            return output.masked_fill(torch.isin(codes["now"], removed)[:, None], 0)

        handles = [
            model.register_forward_pre_hook(remember, with_kwargs=True),
            find_expert_modules(model)[path].register_forward_hook(zero),
        ]
        try:
            return reference.compare(model).kl
        finally:
            for handle in handles:
                handle.remove()

    modalities = (["text"], ["vision"], ["text", "vision"])
    return {
        (path, "+".join(names)): kl(path, names)
        for path in find_expert_modules(model)
        for names in modalities
    }


def test_alpha_equals_brute_force(brute_force, evaluator) -> None:
    alpha = measure_alpha(evaluator, ["text", "vision"])
    for path, constants in alpha.items():
        for name, value in constants.items():
            assert value == pytest.approx(brute_force[path, name], rel=1e-3, abs=1e-9)


def test_no_answer_reads_what_the_last_layer_does_to_images(evaluator) -> None:
    first, last = measure_alpha(evaluator, ["text", "vision"]).values()
    assert last["vision"] == pytest.approx(0, abs=1e-9)
    assert min(first["text"], first["vision"], last["text"]) > 1e-6


def test_shared_alpha_removes_all_modalities_together(brute_force, evaluator) -> None:
    alpha = measure_alpha(evaluator, ["text", "vision"], "shared")
    for path, constants in alpha.items():
        assert constants["text"] == constants["vision"]
        assert constants["text"] == pytest.approx(brute_force[path, "text+vision"], rel=1e-3)


def test_a_modality_that_is_not_asked_for_has_no_alpha(evaluator) -> None:
    progress = []
    alpha = measure_alpha(evaluator, ["text"], on_progress=progress.append)
    assert [list(constants) for constants in alpha.values()] == [["text"], ["text"]]
    assert progress == [0.5, 1.0]


def test_normalised_alphas_sum_to_one_over_the_layers() -> None:
    alpha = {"a": {"text": 3.0, "vision": 0.0}, "b": {"text": 1.0, "vision": 0.0}}
    assert normalise_alpha(alpha) == {
        "a": {"text": 0.75, "vision": 0.0},
        "b": {"text": 0.25, "vision": 0.0},
    }
