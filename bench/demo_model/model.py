"""The demo model's architecture, tokenizer and processor, and how to load the trained one."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoProcessor,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from modes_fx.bench.demo_model.digits import IMAGE_SIDE

CHECKPOINT = str(Path(__file__).with_name("checkpoint"))
"""The folder of the trained model that is shipped in this package."""
PATCH_SIDE = 16
MERGE_SIDE = 2
IMAGE_TOKENS = (IMAGE_SIDE // (PATCH_SIDE * MERGE_SIDE)) ** 2

_NAMED_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_NAMED_TOKENS.values(), "<unk>"]
_WORDS = (
    "user assistant system you are a helpful . ? , "
    "what is the digit digits top bottom left right row column read all in image "
    "largest smallest of how many even where first second plus minus times sort"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The size of the language model's mixture of experts.

    Attributes:
        layers: L.
        experts: E, in each layer.
        top_k: K, experts per token.
        width: I, each expert's intermediate size.
    """

    layers: int
    experts: int
    top_k: int
    width: int


DEMO_SHAPE = Shape(layers=8, experts=32, top_k=8, width=32)


def load_model(
    dtype: torch.dtype = torch.float32, folder: Path | None = None
) -> tuple[Qwen3VLMoeForConditionalGeneration, ProcessorMixin]:
    """Load the trained model and its processor.

    Args:
        dtype: The dtype of the weights; they are stored in bfloat16.
        folder: The checkpoint; by default the one shipped in this package.

    Returns:
        The model in eval mode on the CPU, and the processor.
    """
    if folder is None:
        with as_file(files(__package__).joinpath("checkpoint")) as shipped:
            return load_model(dtype, shipped)
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def build_model(
    tokenizer: PreTrainedTokenizerFast, shape: Shape = DEMO_SHAPE
) -> Qwen3VLMoeForConditionalGeneration:
    """Build the untrained model; its weights follow torch's global random seed."""
    return Qwen3VLMoeForConditionalGeneration(build_config(tokenizer, shape))


def build_config(tokenizer: PreTrainedTokenizerFast, shape: Shape = DEMO_SHAPE) -> Qwen3VLMoeConfig:
    """Describe a small model with the structure of the large ones; by default top-8 of 32."""
    hidden = 128
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": shape.width,
        "max_position_embeddings": 512,
        # The default of 0.02 suits layers 20 times as wide; here it would leave the experts
        # with so little to say at first that the model learns to do without them.
        "initializer_range": hidden**-0.5,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [8, 4, 4],
            "mrope_interleaved": True,
        },
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    vision = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 4,
        "patch_size": PATCH_SIDE,
        "spatial_merge_size": MERGE_SIDE,
        "temporal_patch_size": 2,
        "out_hidden_size": hidden,
        "num_position_embeddings": (IMAGE_SIDE // PATCH_SIDE) ** 2,
        "deepstack_visual_indexes": [0, 1],
    }
    return Qwen3VLMoeConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_processor() -> PaddleOCRVLProcessor:
    """Build the processor: images become 64 patches and 16 tokens each, text becomes words.

    The model family's own processor class also handles video and cannot be built without
    torchvision; this one handles images and text the same way and needs only PIL.
    """
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIDE,
        merge_size=MERGE_SIDE,
        temporal_patch_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2},
    )
    return PaddleOCRVLProcessor(
        image_processor=images, tokenizer=_build_tokenizer(), chat_template=_CHAT_TEMPLATE
    )


def _build_tokenizer() -> PreTrainedTokenizerFast:
    words = [*_SPECIAL_TOKENS, *_WORDS.split(), *map(str, range(100))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(_SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=_SPECIAL_TOKENS[1:-1],
        extra_special_tokens=_NAMED_TOKENS,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
