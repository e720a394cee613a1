"""Vision-language models without trained weights: from a configuration file, or from the published ones that stand here."""

from typing import Any

import torch

from portraitkit.errors import WeightsError
from portraitkit.vlm.load import DTYPES, EMBEDDED, model_path

VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
TEXT = {"max_position_embeddings": 128000, "rms_norm_eps": 1e-6}
ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Of the language part, as the published config.json files say, for machines that cannot read them."""


def meta_model(source: str) -> Any:
    """The model without data, on the meta device; None where neither the files nor our table know it.

    Args:
        source: embedded, a folder or a hub id.

    Raises:
        WeightsError: a folder that holds no model.
    """
    from transformers import AutoModelForImageTextToText

    config = _configuration(source)
    if config is None:
        return None
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def random_model(source: str, processor: Any, *, dtype: str, device: str) -> Any:
    """The model with random weights, made on the device, to measure what work costs; in evaluation mode.

    Args:
        source: embedded, a folder or a hub id that is known here.
        processor: whose pictures' tokens it takes.
        dtype: float32 or bfloat16.
        device: as torch names it.

    Raises:
        WeightsError: neither the files nor our table know the model.
    """
    from transformers import AutoModelForImageTextToText

    config = _configuration(source)
    if config is None:
        raise WeightsError(f"--model {source}: its architecture is not known here; give a folder with its config.json")
    token = processor.tokenizer.convert_tokens_to_ids
    config.image_token_id, config.video_token_id = token("<|image_pad|>"), token("<|video_pad|>")
    config.vision_start_token_id, config.vision_end_token_id = token("<|vision_start|>"), token("<|vision_end|>")
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=DTYPES[dtype]).eval()


def _configuration(source: str) -> Any:
    """transformers' configuration, or None where the model is not known."""
    from transformers import AutoConfig, Qwen2_5_VLConfig

    if source in KNOWN:
        text = KNOWN[source]
        return Qwen2_5_VLConfig(
            vision_config={**VISION, "out_hidden_size": text["hidden_size"]},
            text_config={**TEXT, **text, "rope_parameters": ROPE},
            tie_word_embeddings=text["tie_word_embeddings"],
        )
    path = model_path(source)
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        if source == "embedded" or path == str(EMBEDDED):
            raise
        return None
