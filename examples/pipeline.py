"""Ask a model that skips experts through transformers' pipeline.

``python examples/pipeline.py [MODEL]``: a folder or a hub id; by default the demo model.
"""

import sys

import torch
from transformers import pipeline

import modes_fx
from modes_fx.bench.demo_model import CHECKPOINT, heldout_questions
from modes_fx.calibration import preset_policy


def ask(model: str, *, compiler: str = "inductor") -> str:
    """Print a question about an image, and return the model's answer."""
    pipe = pipeline("image-text-to-text", model=model, dtype=torch.float32)
    modes_fx.attach(pipe.model, preset_policy(pipe.model))  # without a policy: the one beside it
    pipe.model.compile(backend="modes_fx", options={"compiler": compiler})
    example = next(question for question in heldout_questions(1) if question.images)
    content = [{"type": "image", "image": image} for image in example.images]
    content.append({"type": "text", "text": example.question})
    print(f"{example.question} (the right answer: {example.answer})")
    chat = [{"role": "user", "content": content}]
    with torch.inference_mode():
        (answer,) = pipe(chat, max_new_tokens=8, return_full_text=False)
    return answer["generated_text"].strip()


if __name__ == "__main__":
    print(ask(sys.argv[1] if len(sys.argv) > 1 else CHECKPOINT))
