"""The check that nothing changes when nothing is skipped: the compiled model against the original.

The rewritten graph is run node by node here, which computes the same as inductor's code without
waiting for it; the timing step repeats the comparison of generated tokens with inductor.
"""

from collections.abc import Callable

import torch
from torch._dynamo.exc import BackendCompilerFailed
from transformers import PreTrainedModel, ProcessorMixin

import modes_fx
from modes_fx import MatchError, modes_backend
from modes_fx.bench.demo.generation import NEW_TOKENS, Inputs, generate
from modes_fx.bench.demo.report import Tau0Check
from modes_fx.bench.demo_model import Question, encode, heldout_questions

TOLERANCE = 1e-5
ROWS = 4


def check_tau0(
    model: PreTrainedModel,
    copy: PreTrainedModel,
    processor: ProcessorMixin,
    on_progress: Callable[[float], None] = lambda done: None,
) -> Tau0Check:
    """Compare logits on every kind of input, and greedily generated tokens.

    Args:
        model: the unmodified model.
        copy: another copy of it; attached and compiled in place.
        processor: their processor.
        on_progress: called with the share that is done.

    Raises:
        MatchError: an MoE layer could not be rewritten.
    """
    modes_fx.attach(copy, None)
    # Every input has its own shape; with symbolic ones capturing would take several times as long.
    copy.compile(
        backend=modes_backend, options={"compiler": "eager", "strict": True}, dynamic=False
    )
    inputs = {name: encode(processor, some) for name, some in questions_by_input().items()}
    errors = {}
    try:
        for name, batch in inputs.items():
            errors[name] = relative_error(model, copy, batch)
            on_progress(len(errors) / (len(inputs) + 1))
        expected, generated = (generate(either, inputs["padded batch"]) for either in (model, copy))
    except BackendCompilerFailed as error:
        raise MatchError(f"the demo model cannot be compiled: {error.inner_exception}") from None
    on_progress(1.0)
    return Tau0Check(
        errors=errors,
        tolerance=TOLERANCE,
        generated_tokens=NEW_TOKENS * len(expected),
        tokens_equal=torch.equal(expected, generated),
    )


def questions_by_input() -> dict[str, list[Question]]:
    """Return questions for every kind of input the model takes."""
    questions = heldout_questions(ROWS)
    none, one, two = (
        [question for question in questions if len(question.images) == images][:ROWS]
        for images in range(3)
    )
    return {
        "text only": none,
        "one image": one,
        "two images": two,
        "padded batch": [none[0], *one[:2], two[0]],
    }


def relative_error(model: PreTrainedModel, copy: PreTrainedModel, inputs: Inputs) -> float:
    """Return the largest difference of a logit of a real token, relative to the largest logit."""
    with torch.inference_mode():
        expected, computed = (either(**inputs).logits for either in (model, copy))
    real = inputs["attention_mask"].bool()
    difference = (computed - expected)[real].abs().max() / expected[real].abs().max()
    return float(difference)
