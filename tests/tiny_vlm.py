"""A vision-language model that fits into a test: a Qwen2.5-VL with random weights, which knows nothing."""

from collections.abc import Sequence
from pathlib import Path

import torch

from portraitkit.vlm.tiny import build_model, build_processor

ANSWER = ("<answer>", "</answer>")
THINK_ANSWER = ("<think>", "</think>", *ANSWER)


def write_tiny_vlm(folder: Path | str, text: str = "<answer>1.00</answer> Area? ", words: Sequence[str] = ANSWER) -> Path:
    """Write model and processor into a folder; equal texts give equal weights.

    Args:
        folder: made if it is not there.
        text: that the tokenizer is made for.
        words: that are one token each.
    """
    torch.manual_seed(0)
    processor = build_processor([text] * 3, words)
    build_model(processor, hidden_size=96, layers=1, vision_size=32, vision_layers=1).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
