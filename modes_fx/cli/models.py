"""Load the model that a command names, and make inputs to try it on."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from modes_fx.bench import demo_model

DEMO = "demo"
QUESTION = "what is in the image ?"
IMAGE_SIDE = 128


@dataclass(frozen=True)
class Probes:
    """Small inputs of a model.

    Attributes:
        inputs: the arguments of one call, by kind of input ("text", "image and text").
        notes: what could not be tried, and why.
    """

    inputs: dict[str, dict[str, Tensor]]
    notes: list[str]


def load_named_model(
    name: str,
    *,
    trust_remote_code: bool = False,
    config_only: bool = False,
    place: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a model in the dtype it is stored in, and its processor.

    Args:
        name: a local folder, the id of a hub repository, or "demo" for the shipped demo model.
        trust_remote_code: whether code from the repository may run.
        config_only: build the model from its config on the meta device, without weights.
        place: put it on the accelerators there are: on this process's own where several were
            launched, else spread over all.

    Returns:
        The model in eval mode, and its processor or tokenizer, or None where it has neither.

    Raises:
        ValueError: there is no such model, or transformers cannot load it.
    """
    if name == DEMO:
        model, processor = demo_model.load_model()
        return (model.to("meta") if config_only else model), processor
    remote = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **remote)
        is_multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        family = AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM
        if config_only:
            with torch.device("meta"):
                model = family.from_config(config, **remote)
        else:
            model = family.from_pretrained(name, dtype="auto", **_placement(place), **remote)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the model {name!r} cannot be loaded: {first_line(error)} Name a folder that "
            f'save_pretrained wrote, the id of a hub repository, or "{DEMO}"'
        ) from error
    try:
        processor = AutoProcessor.from_pretrained(name, **remote)
    except (OSError, ValueError, ImportError):
        processor = None
    return model.eval(), processor


def _placement(place: bool) -> dict[str, Any]:
    if not place or not torch.accelerator.is_available():
        return {}
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return {"device_map": {"": PartialState().device} if launched else "auto"}


def make_probes(model: PreTrainedModel, processor: Any) -> Probes:
    """Make a text input, and one with an image where the processor can.

    Args:
        model: the model to be called.
        processor: its processor or tokenizer, if any.
    """
    if processor is None:
        note = "neither a processor nor a tokenizer could be loaded: tried on arbitrary token ids"
        ids = torch.arange(1, 9)[None] % model.config.get_text_config().vocab_size
        return Probes({"text": {"input_ids": ids}}, [note])
    inputs, notes = {"text": _encode(model, processor, image=False)}, []
    if not hasattr(processor, "image_processor"):
        notes.append("the model has no image processor: tried on text only")
    else:
        try:
            inputs["image and text"] = _encode(model, processor, image=True)
        except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
            notes.append(f"the processor took no image ({first_line(error)}): tried on text only")
    return Probes(inputs, notes)


def _encode(model: PreTrainedModel, processor: Any, *, image: bool) -> dict[str, Tensor]:
    content: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
    if image:
        grey = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), (128, 128, 128))
        content.insert(0, {"type": "image", "image": grey})
    if processor.chat_template is None:
        encoded = processor(text=QUESTION, return_tensors="pt")
    else:
        encoded = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    return {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in encoded.items()
    }


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
