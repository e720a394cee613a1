"""A vision-language model that fits into a test: a Qwen2.5-VL with random weights, which knows nothing."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from portraitkit.files.jsonl import write_lines
from portraitkit.pictures.images import write_image
from portraitkit.vlm.task import Score, Task
from tools.embedded.tiny_vlm import build_model, build_processor

ANSWER = ("<answer>", "</answer>")
THINK_ANSWER = ("<think>", "</think>", *ANSWER)


def _by_chance(completion, truth, mode) -> Score:
    value = zlib.crc32(completion.encode()) / 2**32
    return Score(value, {"chance": value}, None)


CHANCE = Task("chance", "Area?", lambda columns: None, _by_chance, {"paper": (0.0, 1.0), "fixed": (0.0, 1.0)}, lambda truth: "")
"""A task whose every answer has a reward of its own: groups have a spread."""


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


def write_rows(folder: Path, train: int, test: int, columns: Callable[[int], dict[str, object]], side: Callable[[int], int]) -> None:
    """Write rows of the task `area` with random pictures, as a user has them; their further columns and how wide they are by index."""
    torch.manual_seed(0)
    folder.mkdir()
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            write_image(folder / f"{split}{index}.png", torch.rand(3, side(index) + 8, side(index)))
        rows = ({"image": f"{split}{index}.png", "area": 10.0 + index, **columns(index)} for index in range(count))
        write_lines(folder / f"{split}.jsonl", rows)
