"""A tiny Qwen2.5-VL: the real architecture, tokenizer and processor classes at a size that a laptop's CPU trains.

What is embedded was built by these functions and trained by `tools.embedded.vlm`; a user's own tiny model can be, too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

SIDE = 128  # Side of what the vision tower's windows span, and of the square pictures it was trained on, in pixels
LARGEST = 192 * 96  # Pixels of the largest picture, a judge's view of a candidate; larger ones are scaled down
PATCH = 8
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_processor(texts: Iterable[str], words: Sequence[str] = (), *, vocabulary: int = 1024, **pictures: Any) -> Any:
    """A Qwen2_5_VLProcessor with its own byte-level BPE tokenizer: any text can be encoded, digits stand alone.

    Args:
        texts: what the merges are learned from.
        words: strings that are always one token, such as tags and names.
        vocabulary: number of tokens, words and special ones not counted.
        **pictures: settings of the image processor in place of the tiny model's, such as `patch_size`.

    Returns:
        The processor: left padding, Qwen's special tokens, pictures scaled to at most `LARGEST` pixels in patches of `PATCH`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = Tokenizer(models.BPE())
    alone = pre_tokenizers.Split(Regex(r"\d|[A-F](?=[0-9A-F#\"])|#"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        model_max_length=2048,
    )
    settings: dict[str, Any] = {
        "patch_size": PATCH,
        "temporal_patch_size": 1,
        "merge_size": 2,
        "size": {"shortest_edge": 64 * 64, "longest_edge": LARGEST},
        **pictures,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        tokenizer=wrapped,
        video_processor=Qwen2VLVideoProcessor(**settings),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Any, *, hidden_size: int = 192, layers: int = 4, vision_size: int = 128, vision_layers: int = 4) -> Any:
    """A random Qwen2_5_VLForConditionalGeneration for `processor`'s tokens and pictures; widths are multiples of 96 and (vision) 32."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_size,
            "intermediate_size": vision_size * 5 // 2,
            "num_heads": vision_size // 32,
            "patch_size": PATCH,
            "temporal_patch_size": 1,
            "spatial_merge_size": 2,
            "window_size": SIDE,
            "fullatt_block_indexes": list(range(1, vision_layers, 2)),
            "out_hidden_size": hidden_size,
        },
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 8 // 3,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden_size // 32,
            "num_key_value_heads": hidden_size // 96,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
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
    model = Qwen2_5_VLForConditionalGeneration(config)
    # Every normalisation divides a patch by its own length, and the patch embedding has no bias: without a constant beside it, how
    # bright a patch is would be lost before the first layer has read it.
    torch.nn.init.normal_(model.get_parameter("model.visual.blocks.0.attn.proj.bias"), std=0.3)
    model.generation_config.update(eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>"), bos_token_id=None)
    return model
