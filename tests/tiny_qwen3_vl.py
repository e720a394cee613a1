"""A Qwen3-VL with random weights that fits into a test: features of a deeper layer of the tower, interleaved positions, learned places."""

from collections.abc import Sequence
from typing import Any

import torch

from tools.embedded.tiny_vlm import CHAT_TEMPLATE, PATCH, build_processor


def build_qwen3_vl(texts: Sequence[str], words: Sequence[str] = ()) -> tuple[Any, Any]:
    """Model and processor; equal texts give equal weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    made = build_processor(texts, words)
    tokenizer, token = made.tokenizer, made.tokenizer.convert_tokens_to_ids
    patches = {"patch_size": PATCH, "temporal_patch_size": 1, "merge_size": 2}
    video = Qwen3VLVideoProcessor(**patches, size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64 * 16})
    processor = Qwen3VLProcessor(
        image_processor=made.image_processor, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )
    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "temporal_patch_size": 1,
            "spatial_merge_size": 2,
            "out_hidden_size": 96,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.generation_config.update(eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"), bos_token_id=None)
    return model, processor
