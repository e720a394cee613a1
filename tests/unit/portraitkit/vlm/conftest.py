"""A tiny vision-language model with random weights, and a task whose right answer is the picture's mean colour in words."""

from typing import Any

import pytest
import torch

from portraitkit.errors import DataError
from portraitkit.vlm.rows import Row, make_rows
from portraitkit.vlm.task import Mode, Score, Task
from tools.embedded.tiny_vlm import build_model, build_processor

WORDS = ("dark", "light")


def _make_row(split: str, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    word = WORDS[int(torch.randint(2, (1,), generator=generator))]
    level = 0.2 if word == "dark" else 0.8
    return {"image": (level + 0.1 * torch.rand(3, 40, 48, generator=generator)).clamp(0, 1), "word": word, "split": split}


def _read_truth(row) -> str:
    if row.get("word") not in WORDS:
        raise DataError(f"word {row.get('word')!r}: must be dark or light")
    return row["word"]


def _score(completion: str, truth: str, mode: Mode) -> Score:
    said = completion.removeprefix("<answer>").removesuffix("</answer>")
    formed = completion == f"<answer>{said}</answer>" and said in WORDS
    loose = truth in completion
    right = float(formed and said == truth) if mode == "fixed" else float(loose)
    return Score(right + 0.5 * formed, {"right": right, "form": 0.5 * formed}, said if formed else None)


@pytest.fixture(scope="session")
def brightness() -> Task:
    """Is the picture dark or light? In paper mode a bare word counts, so that a malformed answer may beat a well-formed wrong one."""
    return Task(
        name="brightness",
        prompt="Is this picture dark or light? Answer inside <answer></answer>.",
        read_truth=_read_truth,
        score=_score,
        ranges={"paper": (0.0, 1.5), "fixed": (0.0, 1.5)},
        perfect=lambda truth: f"<answer>{truth}</answer>",
        make_row=_make_row,
        brief="Light?",
    )


@pytest.fixture(scope="session")
def rows(brightness) -> list[Row]:
    """Twelve rows of it."""
    return make_rows(brightness, "train", 12, 0)


@pytest.fixture(scope="session")
def tiny_vlm(brightness, tmp_path_factory):
    """(model, processor, folder): 0.2 M parameters, random."""
    torch.manual_seed(0)
    texts = [brightness.prompt, brightness.brief, *(brightness.perfect(word) for word in WORDS)]
    processor = build_processor(texts * 3, ["<answer>", "</answer>", *WORDS])
    model = build_model(processor, hidden_size=96, layers=2, vision_size=32, vision_layers=2)
    folder = tmp_path_factory.mktemp("vlm")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor, folder
