"""Any chat model of lmms-eval with a policy attached.

``--model modes_fx --model_args base=<a model of lmms-eval>,policy=<folder>,target=0.75,...``
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models import get_model
from torch import nn
from transformers import PreTrainedModel

from modes_fx.attach import attach
from modes_fx.backend import modes_backend
from modes_fx.evaluation.journal import Journal
from modes_fx.evaluation.plugin import CHAT
from modes_fx.policy import SkipPolicy


class Skipping(lmms):
    """Makes a chat model of lmms-eval, with a policy attached and compiled by ``modes_backend``."""

    is_simple = False

    def __new__(
        cls,
        base: str = CHAT,
        policy: str = "",
        target: float | None = None,
        journal: str = "",
        compiler: str = "inductor",
        **options: Any,
    ) -> Any:
        """Make it; what is returned is an object of lmms-eval's own class.

        Args:
            base: the name of a chat model of lmms-eval.
            policy: a folder or hub id; empty: the model is left as it is.
            target: one of the policy's; by default its smallest.
            journal: a file that keeps every answer, and has those of an earlier run.
            compiler: what compiles the rewritten graphs: ``inductor`` or ``eager``.
            options: of the chat model.

        Raises:
            ValueError: the chat model holds no transformers model.
            PolicyError: the policy is for another model, or has no such target.
        """
        made = get_model(base)(**options)
        model = transformers_model(made)
        if policy:
            # Strict: a layer that computed every expert would be scored as one that skips.
            attach(
                model,
                SkipPolicy.from_pretrained(policy),
                target=target,
                count_pairs=True,
                strict=True,
            )
            model.compile(backend=modes_backend, dynamic=True, options={"compiler": compiler})
        raise_what_is_swallowed(made, model)
        if journal:
            keep_answers(made, Journal(Path(journal)))
        return made


def transformers_model(made: Any) -> PreTrainedModel:
    """Return the transformers model inside a chat model of lmms-eval.

    Raises:
        ValueError: it has none, or more than one.
    """
    held = {id(value): value for value in vars(made).values() if isinstance(value, nn.Module)}
    found = [value for value in held.values() if isinstance(value, PreTrainedModel)]
    if len(found) != 1:
        raise ValueError(
            f"{type(made).__name__} of lmms-eval holds {len(found)} transformers models, and a "
            "policy needs exactly one: name another model as base"
        )
    return found[0]


def raise_what_is_swallowed(made: Any, model: PreTrainedModel) -> None:
    """Have errors of ``generate`` end the evaluation.

    Some chat models catch them and go on with an empty answer, which would be scored as wrong.

    Args:
        made: a chat model of lmms-eval; its methods that generate are wrapped.
        model: the one inside; its ``generate`` is wrapped.
    """
    raised: list[BaseException] = []
    generate = model.generate

    def generate_and_tell(*args: Any, **kwargs: Any) -> Any:
        try:
            with torch.inference_mode():
                return generate(*args, **kwargs)
        except Exception as error:  # whatever it is, it goes on from here
            raised.append(error)
            raise

    def checked(answer: Callable[..., Any]) -> Callable[..., Any]:
        def answer_or_raise(*args: Any, **kwargs: Any) -> Any:
            answers = answer(*args, **kwargs)
            if raised:
                raise RuntimeError(
                    f"{type(made).__name__} of lmms-eval went on after an error in generate, with "
                    f"an answer that the model did not give: {raised[0]}"
                ) from raised[0]
            return answers

        return answer_or_raise

    model.generate = generate_and_tell
    made.generate_until = checked(made.generate_until)
    made.generate_until_multi_round = checked(made.generate_until_multi_round)


def keep_answers(made: Any, journal: Journal) -> None:
    """Have a chat model of lmms-eval write every answer down, and give those again that it has."""
    generate = made.generate_until

    def generate_until(requests: list[Any]) -> list[str]:
        return journal.answer(requests, generate, int(made.batch_size))

    made.generate_until = generate_until
