"""The sizes of tiny models: by the name of a config's field, and what single types need besides."""

from collections.abc import Mapping
from typing import Any

EXPERTS, TOP_K = 8, 2
HIDDEN, HEAD_DIM, VOCABULARY = 64, 16, 300
PATCH, IMAGE = 14, 56
IMAGE_TOKEN = 290

Fields = Mapping[str, Any]


def _each(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


BY_NAME: Fields = {
    **_each(
        HIDDEN,
        *("hidden_size", "d_model", "moe_hidden_size", "text_hidden_size", "out_hidden_size"),
        "audio_hidden_size",
        *("projector_hidden_size", "projection_hidden_size", "projection_hidden_dim"),
        *("intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "d_ff"),
        *("ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "projection_intermediate_size"),
        *("expert_capacity", "embed_dim", "vision_output_dim", "output_dim", "adapter_out_dim"),
        *(
            "adapter_in_dim",
            "adapter_input_size",
            "projector_input_dim",
            "projector_output_dim",
            "mlp_dim",
        ),
    ),
    **_each(
        HIDDEN // 2,
        *("moe_intermediate_size", "shared_intermediate_size", "expert_ffn_hidden_size"),
        *("shared_expert_intermediate_size", "shared_experts_intermediate_size"),
        *("moe_shared_expert_intermediate_size", "share_expert_dim", "router_hidden_size"),
        *("rel_extent", "ple_embed_dim"),
    ),
    **_each(
        HEAD_DIM,
        *("head_dim", "kv_channels", "d_kv", "swa_head_dim", "query_pre_attn_scalar"),
        *("q_lora_rank", "kv_lora_rank", "o_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"),
        *("v_head_dim", "index_head_dim", "indexer_head_dim", "linear_head_dim", "hc_lowrank"),
        *("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"),
        *("mamba_d_state", "ssm_state_size", "mamba_chunk_size", "chunk_size", "n_mel_bins"),
        *("num_mel_bins", "downsample_hidden_size", "num_position_embeddings"),
        *("position_embedding_size", "global_head_dim", "num_patches"),
    ),
    **_each(
        4,
        *("num_attention_heads", "num_heads", "n_heads", "encoder_attention_heads"),
        *("decoder_attention_heads", "swa_num_attention_heads", "num_sliding_attention_heads"),
        *("linear_num_value_heads", "linear_num_heads", "split_ngram_parts"),
        "make_ngram_vocab_size_divisible_by",
    ),
    **_each(
        2,
        *("num_hidden_layers", "num_layers", "n_layers", "num_decoder_layers", "depth"),
        *("encoder_layers", "decoder_layers", "num_key_value_heads", "swa_num_key_value_heads"),
        *("num_global_key_value_heads", "linear_num_key_heads", "index_n_heads", "o_groups"),
        *("indexer_n_heads", "n_group", "zero_expert_num", "layer_group_size"),
        *("index_topk_blocks", "num_sparse_decoder_layers", "num_sparse_encoder_layers"),
    ),
    **_each(
        8,
        *("d_rel", "gated_norm_rank", "rotary_dim", "sliding_window", "sliding_window_size"),
        *("keep_window_size", "index_topk", "index_block_size", "mamba_n_heads"),
        *("mamba_num_heads", "mamba_dt_rank", "indexer_budget", "pos_emb_height", "pos_emb_width"),
    ),
    **_each(
        1,
        *("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "mamba_n_groups"),
        *("n_groups", "decoder_sparse_step", "encoder_sparse_step", "indexer_kv_heads"),
        "topk_group",
    ),
    **_each(
        EXPERTS,
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    ),
    **_each(
        TOP_K,
        *("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", "moe_topk"),
        *("top_k_experts", "indexer_compress_ratio"),
    ),
    **_each(
        0,
        *("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
        *("num_kv_shared_layers", "num_nextn_predict_layers", "num_mtp_layers", "pad_token_id"),
    ),
    **_each(512, "max_position_embeddings", "max_seq_len", "max_source_positions"),
    **_each(VOCABULARY, "vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"),
    "mlp_layer_types": ["sparse", "sparse"],
    "hidden_size_per_layer_input": 16,
    "ngram_vocab_size_base": 100,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "blank_token_id": VOCABULARY - 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    **_each(IMAGE_TOKEN, "image_token_id", "image_token_index"),
    **_each(291, "video_token_id", "video_token_index"),
    **_each(292, "audio_token_id", "audio_token_index"),
    **_each(
        293,
        *("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index"),
        "image_bos_token_id",
    ),
    **_each(294, "vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index"),
    **_each(295, "video_start_token_id", "boa_token_id", "audio_bos_token_id"),
    **_each(296, "video_end_token_id", "eoa_token_id", "eoa_token_index", "audio_start_token_id"),
}
"""Fields that mean the same wherever they occur."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {**_ROPE, "mrope_section": [4, 2, 2]}
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]

BY_TYPE: Mapping[str, Fields] = {
    "bailing_hybrid": {"num_key_value_heads": 4},
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
    **_each(
        {"downsample_channels": [HIDDEN, HIDDEN]},
        *("deepseek_ocr2_sam_vision_model", "unlimited_ocr_sam_vision_model"),
    ),
    "doge": {"is_moe": True, "num_experts": 16},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [32, 16],
        "rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]},
    },
    "flint": {"mlp_only_layers": []},
    "gemma4_text": {"enable_moe_block": True},
    "glm4v_moe_text": {"rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0}},
    "glm5_next_text": {
        "index_kpool": 2,
        "qk_rope_head_dim": 0,
        "layer_types": _LINEAR_AND_FULL,
    },
    "granitemoehybrid": {"layer_types": _LINEAR_AND_FULL},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi_linear": {"layer_types": _LINEAR_AND_FULL},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "muse_spark": {"out_hidden_size": 4 * HIDDEN},
    "muse_spark_audio": {"hidden_sizes": [16, 16], "patch_sizes": [4, 4], "depths": [1, 1]},
    "nemotron_h": {
        "num_hidden_layers": None,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    },
    "phimoe": {"router_jitter_noise": 0.5},
    "qwen3_5_moe_text": {
        "layer_types": _LINEAR_AND_FULL,
        "rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0},
    },
    "qwen3_next": {"layer_types": _LINEAR_AND_FULL},
    "qwen3_omni_moe": {"enable_audio_output": False},
    "qwen3_omni_moe_text": {"rope_parameters": _MROPE},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 293, "vision_end_token_id": 294},
    "qwen3_vl_moe_text": {"rope_parameters": _MROPE},
    "qwen4_exp_text": {"rope_parameters": _MROPE, "layer_types": _LINEAR_AND_FULL},
    "qwen3_vl_moe_vision": {"deepstack_visual_indexes": [0, 1]},
    "qwen3_omni_moe_vision_encoder": {"deepstack_visual_indexes": [0, 1]},
    "zaya": {"num_experts_per_tok": 1},
    "llama4_vision_model": {"intermediate_size": 256},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "radio": {"video_temporal_patch_size": 2},
    "nemotron_h_omni": {"vision_hidden_size": HIDDEN},
    "internvl_vision": {"image_size": [IMAGE, IMAGE], "patch_size": [PATCH, PATCH]},
}
"""What a type needs besides: lists that must fit its number of layers, ratios that must divide."""

NESTED: Mapping[str, Fields] = {
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": EXPERTS, "moe_top_k": TOP_K, "hidden_size": HIDDEN},
    },
}
"""Parts that are no configs of a type of their own."""

MODEL_CLASSES: Mapping[str, str] = {"mistral4": "Mistral4ForCausalLM"}
"""Types whose auto class builds another type's model."""
