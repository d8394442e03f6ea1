"""Equal choices are equal requests, and thus one measurement."""

import pytest
import torch

from modes_fx import SkipPolicy
from modes_fx.calibration import Request
from modes_fx.calibration.ledger import key_of
from modes_fx.hooks import keep_all_theta
from modes_fx.vocabulary import Modality


def theta(text: float) -> torch.Tensor:
    some = keep_all_theta()
    some[Modality.TEXT] = text
    return some


def test_order_and_layers_that_keep_all_do_not_matter() -> None:
    one = Request.of({"b": theta(0.25), "a": theta(0.5), "c": keep_all_theta()})
    other = Request.of({"a": theta(0.5), "b": theta(0.25)})
    assert one == other
    assert hash(one) == hash(other)
    assert key_of(one.to_dict()) == key_of(other.to_dict())


@pytest.mark.parametrize(
    "changed",
    [
        Request.of({"a": theta(0.5000001)}),
        Request.of({"b": theta(0.5)}),
        Request.of({"a": theta(0.5)}, kept_mass_exponent=0.25),
        Request.of({"a": theta(0.5)}, min_k=1),
        Request.of({"a": theta(0.5)}, mean_strength=0.5, means="hash"),
        Request.of({"a": theta(0.5)}).on("fit"),
    ],
)
def test_whatever_differs_is_another_request(changed) -> None:
    assert key_of(changed.to_dict()) != key_of(Request.of({"a": theta(0.5)}).to_dict())


def test_means_of_no_strength_are_none() -> None:
    assert Request.of({}, means="hash") == Request()


def test_thresholds_come_back_as_they_went_in() -> None:
    request = Request.of({"a": theta(1 / 3)})
    assert torch.equal(request.theta("a"), theta(1 / 3))
    assert torch.equal(request.theta("b"), keep_all_theta())


def test_a_policys_request_is_what_it_does() -> None:
    policy = SkipPolicy(
        alpha={"a": {"text": 0.5}}, tau={0.5: {"text": 0.2}}, kept_mass_exponent=0.25, min_k=1
    )
    request = Request.of_policy(policy, 0.5)
    assert torch.equal(request.theta("a"), policy.theta("a", 0.5))
    assert (request.kept_mass_exponent, request.min_k) == (0.25, 1)


@pytest.mark.parametrize("wrong", [torch.zeros(3), theta(float("nan"))])
def test_thresholds_that_are_none_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="give 5 numbers"):
        Request.of({"a": wrong})


def test_a_strength_without_means_is_refused() -> None:
    with pytest.raises(ValueError, match="needs means to add"):
        Request.of({}, mean_strength=0.5)
