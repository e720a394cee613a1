"""A Qwen3-VL with random weights that fits into a test: features of a deeper layer of the tower, interleaved positions, learned places.
And a Qwen3.5: a layer of linear attention before one of full attention.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tools.embedded.tiny_vlm import CHAT_TEMPLATE, PATCH, build_processor

VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": PATCH,
    "temporal_patch_size": 1,
    "spatial_merge_size": 2,
    "out_hidden_size": 96,
    "num_position_embeddings": 64,
}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_interleaved": True}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def build_qwen3_vl(texts: Sequence[str], words: Sequence[str] = ()) -> tuple[Any, Any]:
    """Model and processor; equal texts give equal weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    vision, text = VISION | {"deepstack_visual_indexes": [0]}, TEXT | {"rope_parameters": ROPE | {"mrope_section": [6, 5, 5]}}
    return _build(Qwen3VLForConditionalGeneration, Qwen3VLConfig, vision, text, texts, words)


def build_qwen3_5(texts: Sequence[str], words: Sequence[str] = (), *, rounds: int = 1) -> tuple[Any, Any]:
    """The same of Qwen3.5; with more rounds, each has three layers of linear attention before one of full, as the published ones."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    rope = ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
    text = TEXT | LINEAR | {"rope_parameters": rope}
    if rounds > 1:
        text |= {"num_hidden_layers": 4 * rounds, "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * rounds}
    return _build(Qwen3_5ForConditionalGeneration, Qwen3_5Config, VISION, text, texts, words)


def _build(kind: Any, config: Any, vision: Any, text: Any, texts: Sequence[str], words: Sequence[str]) -> tuple[Any, Any]:
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    made = build_processor(texts, words)
    tokenizer, token = made.tokenizer, made.tokenizer.convert_tokens_to_ids
    patches = {"patch_size": PATCH, "temporal_patch_size": 1, "merge_size": 2}
    video = Qwen3VLVideoProcessor(**patches, size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64 * 16})
    processor = Qwen3VLProcessor(
        image_processor=made.image_processor, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )
    ends = {"bos_token_id": token("<|im_start|>"), "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>")}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    torch.manual_seed(0)
    model = kind(
        config(
            vision_config=vision,
            text_config=text | ends | {"vocab_size": len(tokenizer)},
            **{name: token(f"<|{text}|>") for name, text in names.items()},
            tie_word_embeddings=True,
        )
    ).eval()
    model.generation_config.update(**{**ends, "bos_token_id": None})
    return model, processor
