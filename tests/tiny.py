"""A tiny random multimodal MoE model, its inputs, and graphs of hand-written experts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from modes_fx.backend import BackendOptions, compile_graph
from modes_fx.bench.demo_model.model import build_config, build_processor
from modes_fx.passes.report import LayerReport

IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END, PAD = 5, 6, 3, 4, 0
TOKENS_PER_IMAGE = 4


def tiny_vlm(layers: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A model with an image tower and ``layers`` MoE layers of 8 experts, top-2."""
    torch.manual_seed(seed)
    config = Qwen3VLMoeConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "pad_token_id": PAD,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    model = Qwen3VLMoeForConditionalGeneration(config).eval().to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            nn.init.normal_(parameter, std=1.0)  # routers that are sure of some experts
        elif name.endswith(("gate_up_proj", "down_proj")):
            nn.init.normal_(parameter, std=0.1)
    return model


def save_untrained_demo(folder: Path, layers: int = 2) -> Path:
    """Save an untrained model in the shape of the demo model, of fewer layers; return where."""
    processor = build_processor()
    config = build_config(processor.tokenizer)
    config.text_config.num_hidden_layers = layers
    torch.manual_seed(0)
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def chat(text: int, images: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """One prompt: ``images`` images, then ``text`` text tokens."""
    generator = torch.Generator().manual_seed(seed)
    image = [VISION_START, *[IMAGE_TOKEN] * TOKENS_PER_IMAGE, VISION_END]
    words = torch.randint(8, 64, (text,), generator=generator).tolist()
    ids = torch.tensor([image * images + words])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
    }
    if images:
        inputs["pixel_values"] = torch.randn(images * 16, 3 * 2 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * images)
    return inputs


def video_chat(text: int) -> dict[str, Tensor]:
    """One prompt: a video of two frames, then ``text`` text tokens."""
    inputs = chat(text, images=1)
    inputs["input_ids"][inputs["input_ids"] == IMAGE_TOKEN] = VIDEO_TOKEN
    inputs["mm_token_type_ids"] *= 2
    inputs["pixel_values_videos"] = inputs.pop("pixel_values")
    inputs["video_grid_thw"] = inputs.pop("image_grid_thw")
    return inputs


def left_padded(*chats: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several prompts as one batch, the shorter ones padded on the left."""
    return _padded(chats, lambda missing: (missing, 0))


def right_padded(*chats: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several prompts as one batch, the shorter ones padded on the right."""
    return _padded(chats, lambda missing: (0, missing))


def _padded(
    chats: Sequence[dict[str, Tensor]], sides: Callable[[int], tuple[int, int]]
) -> dict[str, Tensor]:
    length = max(c["input_ids"].shape[1] for c in chats)
    batch = {
        name: torch.cat(
            [nn.functional.pad(c[name], sides(length - c[name].shape[1]), value=PAD) for c in chats]
        )
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    for name in ("pixel_values", "image_grid_thw"):
        if found := [c[name] for c in chats if name in c]:
            batch[name] = torch.cat(found)
    return batch


def compile_observed(
    model: Any, strict: bool = False
) -> tuple[Callable[..., Any], list[LayerReport]]:
    """A model compiled through the passes, and the reports that calls of it will add to."""
    reports: list[LayerReport] = []

    def backend(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Any:
        options = BackendOptions(compiler="eager", strict=strict)
        return compile_graph(module, example_inputs, options, reports.extend)

    return torch.compile(model, backend=backend), reports


class GroupedExperts(nn.Module):
    """Experts with a grouped dispatch, written out; parts can be overridden to make near-misses."""

    def __init__(self, experts: int = 6, hidden: int = 16, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_experts = experts
        self.up = nn.Parameter(torch.randn(experts, 2 * width, hidden, generator=generator))
        self.down = nn.Parameter(torch.randn(experts, hidden, width, generator=generator))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """``x`` [T, H], ``index`` and ``weight`` [T, K] -> [T, H]."""
        top_k = index.shape[1]
        ordered, perm = torch.sort(index.reshape(-1))
        offsets = self.counts(ordered).cumsum(0, dtype=torch.int32)
        rows = self.grouped(x[perm // top_k], self.up, offsets)
        rows = self.grouped(self.activation(rows), self.down, offsets)
        rows = self.weighted(rows, weight.reshape(-1)[perm])
        return self.combine(self.restore(rows, perm).view(len(x), top_k, x.shape[-1]))

    def counts(self, ordered: Tensor) -> Tensor:
        return torch.histc(ordered.float(), self.num_experts, 0, self.num_experts - 1)

    def grouped(self, rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        return torch.ops.transformers.grouped_mm_fallback(rows, weight.transpose(1, 2), offsets)

    def activation(self, rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up

    def weighted(self, rows: Tensor, weight: Tensor) -> Tensor:
        return rows * weight[:, None]

    def restore(self, rows: Tensor, perm: Tensor) -> Tensor:
        return rows[perm.argsort()]

    def combine(self, rows: Tensor) -> Tensor:
        return rows.sum(1)


def routed_tokens(
    tokens: int = 5, top_k: int = 2, experts: int = 6, hidden: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    """Random ``x`` [T, H], ``index`` [T, K] and ``weight`` [T, K]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, hidden, generator=generator)
    scores = torch.rand(tokens, experts, generator=generator).softmax(-1)
    weight, index = scores.topk(top_k, dim=-1)
    return x, index, weight
