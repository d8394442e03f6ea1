"""The model classes of three families, run through the plugin on tiny checkpoints.

With transformers' own processors, which need torchvision.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_eval")
pytest.importorskip("torchvision")

import transformers
from lmms_eval.models import get_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from modes_fx.attach import pair_counts
from modes_fx.bench.coverage.sizes import IMAGE, PATCH, VOCABULARY
from modes_fx.bench.coverage.tiny import tiny_model
from modes_fx.bench.demo_model.model import MERGE_SIDE, PATCH_SIDE, build_processor
from modes_fx.calibration import preset_policy
from modes_fx.evaluation.plugin import CHAT, SKIPPING
from modes_fx.evaluation.skipping import transformers_model
from modes_fx.modality import Modality
from tests.tiny import save_untrained_demo

pytestmark = pytest.mark.slow

TARGET = 0.5
LAYERS = 2
TEMPLATE = (
    "{%% for message in messages %%}{{ message['role'] }} {%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}%s"
    "{%% elif part['type'] == 'text' %%}{{ part['text'] }}{%% endif %%}"
    "{%% endfor %%} {%% endfor %%}"
)


def build_tokenizer(named: Mapping[str, str], tokens: Mapping[int, str]) -> Any:
    """A tokenizer of single words, whose special tokens have the numbers in the models' configs."""
    every = {0: "<pad>", 1: "<bos>", 2: "<eos>", 3: "<unk>", **tokens}
    words = {every.get(number, f"w{number}"): number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(every.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=dict(named),
    )


def save_qwen3_vl(folder: Path) -> None:
    # Of the demo's sizes: lmms-eval's class cuts images into patches of 16 pixels.
    save_untrained_demo(folder)
    simple = build_processor()
    patches = {"patch_size": PATCH_SIDE, "merge_size": MERGE_SIDE, "temporal_patch_size": 2}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**patches),
        simple.tokenizer,
        transformers.Qwen3VLVideoProcessor(**patches),
        chat_template=simple.chat_template,
    ).save_pretrained(folder)


def save_internvl(folder: Path) -> None:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    media = {290: "<IMG_CONTEXT>", 291: "<video>", 293: "<img>", 294: "</img>"}
    side = {"height": IMAGE, "width": IMAGE}
    transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=side),
        build_tokenizer(named, media),
        transformers.InternVLVideoProcessor(size=side),
        image_seq_length=(IMAGE // PATCH // 2) ** 2,
        chat_template=TEMPLATE % "<IMG_CONTEXT>",
    ).save_pretrained(folder)
    tiny_model("internvl+qwen3_moe").save_pretrained(folder)


def save_kimi_k25(folder: Path) -> None:
    media = {290: "<|media_pad|>", 291: "<|kimi_k25_video_placeholder|>"}
    side = {"max_height": IMAGE, "max_width": IMAGE}
    patches = {"patch_size": PATCH, "merge_size": 2}
    transformers.Kimi_K25Processor(
        transformers.Kimi_K25ImageProcessor(**patches, size=side),
        build_tokenizer({}, media),
        transformers.Kimi_K25VideoProcessor(**patches, size=side),
        chat_template=TEMPLATE % "<|media_pad|>",
    ).save_pretrained(folder)
    tiny_model("kimi_k25").save_pretrained(folder)


def ask(made: Any, sides: tuple[int, ...]) -> list[SimpleNamespace]:
    """Ask about images of some sizes, as lmms-eval does."""

    def doc_to_messages(side: int) -> list[dict[str, Any]]:
        image = Image.new("RGB", (side, side), (200, 30, side))
        content = [{"type": "image", "url": image}, {"type": "text", "text": "w7 w8 w9"}]
        return [{"role": "user", "content": content}]

    made.task_dict["task"] = {"test": sides}
    options = {"max_new_tokens": 3, "do_sample": False, "until": []}
    return [
        SimpleNamespace(args=("", doc_to_messages, dict(options), i, "task", "test"))
        for i in range(len(sides))
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("base", "save", "more"),
    [
        ("qwen3_vl", save_qwen3_vl, {"min_pixels": 1024}),
        ("internvl_hf", save_internvl, {}),
        (CHAT, save_kimi_k25, {}),
    ],
    ids=["qwen3_vl", "internvl_hf", "kimi_k25"],
)
def test_a_class_answers_with_a_policy_on_every_layer(base, save, more, tmp_path) -> None:
    folder = tmp_path / "tiny-A1B"  # lmms-eval tells mixtures of experts by such a name
    save(folder)
    policy = folder / "policy"
    saved = AutoModelForImageTextToText.from_pretrained(folder)
    preset_policy(saved, targets=[TARGET]).save_pretrained(policy)
    made = get_model(SKIPPING)(
        base=base,
        pretrained=str(folder),
        policy=str(policy),
        target=TARGET,
        compiler="eager",
        device="cpu",
        device_map="cpu",
        **more,
    )
    assert len(made.generate_until(ask(made, (IMAGE, 2 * IMAGE)))) == 2
    counts = pair_counts(transformers_model(made))
    assert len(counts) == LAYERS
    for asked, kept in (counts[path].unbind(1) for path in counts):
        assert asked[Modality.TEXT]
        assert asked[Modality.VISION]
        assert 0 < kept.sum() < asked.sum()
