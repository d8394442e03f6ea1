"""Print what a model that skips experts generates, word by word, while it generates.

``python examples/streaming.py [MODEL]``: a folder or a hub id; by default the demo model.
"""

import sys
from collections.abc import Iterator
from threading import Thread

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

import modes_fx
from modes_fx.bench.demo_model import CHECKPOINT, encode, heldout_questions
from modes_fx.calibration import preset_policy


def stream(name: str, *, compiler: str = "inductor") -> Iterator[str]:
    """Give the pieces of an answer to a question about images as they come."""
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(name)
    modes_fx.attach(model, preset_policy(model))  # without a policy: the one beside the model
    model.compile(backend="modes_fx", options={"compiler": compiler})
    example = next(question for question in heldout_questions(1) if question.kind == "read_all")
    print(f"{example.question} (the right answer: {example.answer})")
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600
    )
    inputs = encode(processor, [example])
    call = {**inputs, "streamer": streamer, "max_new_tokens": 16}
    Thread(target=model.generate, kwargs=call, daemon=True).start()
    yield from streamer


if __name__ == "__main__":
    for piece in stream(sys.argv[1] if len(sys.argv) > 1 else CHECKPOINT):
        print(piece, end="", flush=True)
    print()
