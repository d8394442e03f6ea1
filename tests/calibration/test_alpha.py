"""alpha is what removing a layer's experts does to the answers, measured the slow way too."""

import pytest
import torch

from modes_fx.attach import find_expert_modules
from modes_fx.calibration import Request
from modes_fx.calibration.alpha import AlphaOptions, measure_alpha, normalise_alpha
from modes_fx.calibration.data import token_codes
from modes_fx.calibration.prefix import find_stack
from modes_fx.calibration.removals import removed_theta
from modes_fx.calibration.survey import Survey
from modes_fx.vocabulary import CALIBRATED

BOTH = ["text", "vision"]


@pytest.fixture
def survey(evaluator) -> Survey:
    return Survey(evaluator, 1, find_stack(evaluator.model, evaluator.layers))


@pytest.fixture(scope="module")
def brute_force(model, reference):
    """How far answers move where what the experts of the unmodified model put out is replaced."""

    def difference(path: str, modalities: tuple[str, ...], returned: str):
        codes = {}
        removed = torch.tensor([CALIBRATED[name] for name in modalities])
        block = path if returned == "zero" else path.rpartition(".")[0]

        def remember(module, args, kwargs) -> None:
            codes["now"] = token_codes(module, kwargs)

        def replace(module, args, output):
            rows = torch.isin(codes["now"], removed).view(*output.shape[:-1], 1)
            return torch.where(rows, 0 if returned == "zero" else args[0], output)

        handles = [
            model.register_forward_pre_hook(remember, with_kwargs=True),
            model.get_submodule(block).register_forward_hook(replace),
        ]
        try:
            return reference.compare(model)
        finally:
            for handle in handles:
                handle.remove()

    groups = (("text",), ("vision",), ("text", "vision"))
    return {
        (path, group, returned): difference(path, group, returned)
        for path in find_expert_modules(model)
        for group in groups
        for returned in ("zero", "input")
    }


@pytest.mark.parametrize("distance", ["kl", "mse"])
@pytest.mark.parametrize("returned", ["zero", "input"])
def test_alpha_equals_brute_force(brute_force, survey, distance, returned) -> None:
    alpha = measure_alpha(survey, BOTH, AlphaOptions(distance=distance, returned=returned))
    for path, constants in alpha.items():
        for name, value in constants.items():
            expected = getattr(brute_force[path, (name,), returned], distance)
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_remembered_layers_give_the_alphas_of_whole_passes(survey) -> None:
    alpha = measure_alpha(survey, BOTH)
    for path, constants in alpha.items():
        for name, value in constants.items():
            plain = survey.evaluator.measure(Request.of({path: removed_theta([name])})).kl
            assert value == pytest.approx(plain, rel=1e-4, abs=1e-9)


def test_it_takes_a_part_of_the_layer_forwards_of_whole_passes(survey) -> None:
    for chunk in survey.chunks:
        survey.found(chunk)
    measure_alpha(survey, BOTH)
    layers = len(survey.evaluator.layers)
    forwards = survey.evaluator.ledger.layer_forwards / survey.evaluator.reference.samples
    assert forwards == layers * (layers + 2)
    plain = layers * (2 * layers + 1)
    assert forwards / plain <= (layers + 2) / (2 * layers + 1)


def test_without_a_stack_whole_passes_are_made(evaluator) -> None:
    plain = Survey(evaluator)
    alpha = measure_alpha(plain, ["text"])
    forwards = evaluator.ledger.layer_forwards / evaluator.reference.samples
    assert forwards == len(alpha) ** 2


def test_what_no_answer_reads_is_exactly_0(survey) -> None:
    first, last = measure_alpha(survey, BOTH).values()
    assert last["vision"] == 0
    assert min(first["text"], first["vision"], last["text"]) > 1e-6


def test_shared_alpha_removes_all_modalities_together(brute_force, survey) -> None:
    alpha = measure_alpha(survey, BOTH, AlphaOptions(mode="shared"))
    for path, constants in alpha.items():
        assert constants["text"] == constants["vision"]
        expected = brute_force[path, ("text", "vision"), "zero"].kl
        assert constants["text"] == pytest.approx(expected, rel=1e-3)


def test_a_modality_that_is_not_asked_for_has_no_alpha(survey) -> None:
    progress = []
    alpha = measure_alpha(survey, ["text"], on_progress=progress.append)
    assert [list(constants) for constants in alpha.values()] == [["text"], ["text"]]
    assert progress == [1.0]


def test_normalised_alphas_sum_to_one_over_the_layers() -> None:
    alpha = {"a": {"text": 3.0, "vision": 0.0}, "b": {"text": 1.0, "vision": 0.0}}
    assert normalise_alpha(alpha) == {
        "a": {"text": 0.75, "vision": 0.0},
        "b": {"text": 0.25, "vision": 0.0},
    }
