"""`make embedded`: rebuild the committed tiny Qwen2.5-VL, and the judge made from it, from their recipe. Under three hours on two cores.

Rows of every task's training split; what of the tower has a closed form; then the language part alone learns to read what the tower
sees (`pretrain_read`). Rows and phases are kept in the work folder and gone on from. Validation rows alone are looked at; the
held-out split is never touched.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from policies.vlm.tasks import load_task
from portraitkit.cli import run_command
from portraitkit.config import Options, load_config
from portraitkit.pictures.images import from_uint8, to_uint8
from portraitkit.processor import bf16_autocast
from portraitkit.vlm.evaluate import score_all
from portraitkit.vlm.generate import complete
from portraitkit.vlm.rows import Row
from tools.embedded.judge import JudgePhase, calibrate_embedded, open_cells, teach_judge
from tools.embedded.judge import make_heads as make_judge_heads
from tools.embedded.tiny_vlm import build_model, build_processor
from tools.embedded.vlm_read import Lesson, Phase, make_heads, make_lessons, teach_to_read

ROWS = {
    "area": 3000,
    "area-rotated": 1500,
    "area-5-35": 1500,
    "makeup-lips": 8000,
    "makeup": 12000,
    "emotion": 12000,
    "preference": 16000,
}
"""Training rows of each task; with 4000 of each, what is learned of emotions, colours and blemishes holds for these rows only."""
EARLY = 4000
"""Rows of each task, the first ones, that the tower's start and the first phases take."""
READ = (
    Phase(900, 3e-3, 0.02, 0.4, {"area": 24, "makeup": 64, "emotion": 32, "preference": 40}, rows=EARLY),
    Phase(800, 1.2e-3, 0.008, 0.7, {"area": 12, "makeup": 96, "emotion": 12, "preference": 40}, rows=EARLY),
    Phase(900, 2e-3, 0.012, 0.8, {"area": 8, "makeup": 48, "emotion": 24, "preference": 64}),
)
"""Of the language part alone, two seconds an update. The last one, on all rows, is for what the others leave: marks of a few pixels."""
JUDGE = (
    JudgePhase(400, 1e-3, 6e-3, until=0.6),
    JudgePhase(800, 8e-4, 4.8e-3, mirrored=True, noise=0.1),
)
"""Of the judge, on pairs alone, two seconds an update on one core."""
WITH_CELLS = 8000
"""Pairs, the first ones, that say where their blemishes are."""
WORTH_A_POOL = 500
"""Rows from which on processes are started for them."""
WORDS = ("<think>", "</think>", "<answer>", "</answer>", "<reasoning>", "</reasoning>")


@dataclass(frozen=True)
class PretrainConfig(Options):
    """Rebuild the embedded vision-language model."""

    output_dir: str = "portraitkit/vlm/embedded"
    """Where the model and its processor go."""
    judge_dir: str = "reward_models/embedded"
    """Where the judge made from it goes."""
    work_dir: str = "runs/embedded-vlm"
    """Stages and logs."""
    seed: int = 0
    """Of weights, rows and batches."""
    validation_rows: int = 100
    """Validation rows of each task."""
    scale: float = 1.0
    """Share of the rows and updates; below 1 only to try the recipe."""


def main(argv: list[str]) -> int:
    """Run the stages that are missing and write the model; returns the exit code."""
    config = load_config(PretrainConfig, argv, prog="python -m tools.embedded.vlm")
    console = Console(stderr=True)
    work = Path(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    rows = {split: {name: open_rows(config, work, name, split, console) for name in ROWS} for split in ("train", "validation")}
    processor = make_processor(rows["train"])
    model = build_model(processor)
    start(model, processor, rows["train"])
    heads = make_heads(model.config.text_config.hidden_size)
    lessons = cache(lambda: make_lessons(model, processor, rows["train"], lambda some: tokens_of(model, processor, some)))
    mirrored = cache(lambda: mirrored_pairs(model, processor, rows["train"]["preference"]))
    for number, phase in enumerate(READ):
        part = replace(phase, steps=max(int(phase.steps * config.scale), 1))
        teach_to_read(model, heads, lessons, part, work / f"read_{number}.pt", console)
    found = validate(model, processor, rows["validation"])
    recipe = {**asdict(config), "rows": ROWS, "read": [asdict(phase) for phase in READ]}
    write(model, processor, Path(config.output_dir), {**recipe, "validation": found}, console)
    torch.manual_seed(config.seed + 1)
    pairs = rows["train"]["preference"]
    cells = open_cells(work / "cells.pt", int(WITH_CELLS * config.scale) or 1, config.seed * len(pairs), console)
    heads = make_judge_heads(model.config.text_config.hidden_size, heads["preference"])
    for number, phase in enumerate(JUDGE):
        part = replace(phase, steps=max(int(phase.steps * config.scale), 1))
        teach_judge(model, heads, (lessons()["preference"], mirrored()), cells, part, work / f"judge_{number}.pt", console)
    found = validate(model, processor, {"preference": rows["validation"]["preference"]})
    recipe |= {"judge": [asdict(phase) for phase in JUDGE], "with_cells": WITH_CELLS, "validation": found}
    write(model, processor, Path(config.judge_dir), recipe, console)
    calibrate_embedded(Path(config.judge_dir), console)
    return 0


def mirrored_pairs(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> Lesson:
    """A judge's lesson from pictures in a mirror."""
    turned = [{**row, "pictures": [picture.flip(1) for picture in row["pictures"]]} for row in rows]
    return make_lessons(model, processor, {"preference": turned}, lambda some: tokens_of(model, processor, some))["preference"]


def write(model: Any, processor: Any, folder: Path, recipe: Mapping[str, Any], console: Console) -> None:
    """Write a model in half precision, its processor and how it was made; the model in memory stays as it is."""
    console.print(recipe["validation"])
    deepcopy(model).half().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def open_rows(config: PretrainConfig, work: Path, name: str, split: str, console: Console) -> list[dict[str, Any]]:
    """Rows with 8-bit pictures, kept in the work folder."""
    path = work / f"{name}_{split}.pt"
    if path.is_file():
        return torch.load(path, weights_only=False)
    count = int((ROWS[name] if split == "train" else config.validation_rows) * config.scale) or 1
    started = time.monotonic()
    seeds, make = range(config.seed * count, config.seed * count + count), partial(_make_row, name, split)
    if count < WORTH_A_POOL:
        rows = list(map(make, seeds))
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            rows = list(pool.map(make, seeds, chunksize=20))
    for row in rows:
        row["pictures"] = [torch.from_numpy(picture) for picture in row["pictures"]]
    console.print(f"{name} {split}: {count} rows in {time.monotonic() - started:.0f} s", highlight=False)
    torch.save(rows, path)
    return rows


def _make_row(name: str, split: str, seed: int) -> dict[str, Any]:
    """A row with its pictures as 8-bit arrays."""
    task = load_task(name)
    assert task.make_row is not None
    columns = dict(task.make_row(split, seed))
    pictures = [to_uint8(picture) for picture in columns.pop("images", None) or [columns.pop("image")]]
    target = columns.pop("target", None) or task.perfect(task.read_truth(columns))
    return {"pictures": pictures, "target": target, "columns": columns}


def make_processor(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """The processor, its merges learned from every task's prompts and answers, names of shapes and emotions whole."""
    from preference_data.emotion_rows import EMOTIONS
    from preference_data.people.makeup_shapes import SHAPES

    tasks = [load_task(name) for name in rows]
    texts = [text for task in tasks for text in (task.prompt, task.brief)] * 20
    texts += [row["target"] for some in rows.values() for row in some[:1000]]
    return build_processor(texts, [*WORDS, *SHAPES, *EMOTIONS])


def pixels_of(processor: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """(patches, n x patches x values, in bfloat16; grid of one picture) of all pictures of the rows, which are equally large."""
    parts, grids = [], []
    for start in range(0, len(rows), 256):
        pictures = [picture.permute(2, 0, 1) for row in rows[start : start + 256] for picture in row["pictures"]]
        found = processor.image_processor(pictures, return_tensors="pt")
        parts.append(found["pixel_values"].view(len(pictures), -1, found["pixel_values"].shape[-1]).bfloat16())
        grids.append(found["image_grid_thw"][:1])
    return torch.cat(parts), grids[0]


def look(model: Any, pixels: Tensor, grid: Tensor) -> Tensor:
    """The tower's tokens of each picture, n x tokens x width; matrix products in bfloat16."""
    with bf16_autocast():
        tokens = model.model.visual(pixels.reshape(-1, pixels.shape[-1]), grid.expand(len(pixels), -1)).pooler_output
    tokens = torch.cat(list(tokens)) if isinstance(tokens, list | tuple) else tokens
    return tokens.float().view(len(pixels), -1, tokens.shape[-1])


@torch.no_grad()
def tokens_of(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """The tower's tokens of each row, those of its pictures one after the other."""
    pixels, grid = pixels_of(processor, rows)
    tokens = torch.cat([look(model, part, grid).bfloat16() for part in pixels.split(64)])
    return tokens.reshape(len(rows), -1, tokens.shape[-1])


@torch.no_grad()
def start(model: Any, processor: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, every: int = 60) -> None:
    """Set what has a closed form, from every 60th of each task's early rows."""
    some = [pixels_of(processor, part[:EARLY:every]) for part in rows.values()]
    patches = torch.cat([pixels.flatten(0, 1)[::3] for pixels, _ in some])
    see_from_the_start(
        model, patches[:: len(patches) // 40_000 + 1], lambda: torch.cat([look(model, *found).flatten(0, 1) for found in some])
    )


def see_from_the_start(model: Any, patches: Tensor, tokens: Callable[[], Tensor]) -> None:
    """Set what of the untrained vision tower has a closed form, so that its tokens can be read from the first step on.

    The patch embedding becomes the principal components of real patches. The last layer is scaled so that each channel of the tokens has
    mean 0 and spread 1 over real pictures: untrained tokens differ much from place to place and little from picture to picture. And the
    layers of the language part begin as the identity (their output projections are 0).

    Args:
        model: from `build_model`.
        patches: n x values, as the image processor makes them; some ten thousand.
        tokens: gives the tower's tokens of some pictures, n x width.
    """
    tower, text = model.model.visual, model.model.language_model
    weight = tower.patch_embed.proj.weight
    components = torch.linalg.svd(patches.float(), full_matrices=False)[2][: len(weight)]
    spread = (patches.float() @ components.T).square().mean().sqrt()
    last = [layer for layer in tower.merger.mlp if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        weight.copy_((components * (0.3 / spread)).view_as(weight))
        found = tokens()
        mean, deviation = found.mean(0), found.std(0).clamp_min(1e-3)
        last.weight.div_(deviation[:, None])
        last.bias.copy_((last.bias - mean) / deviation)
        for layer in text.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


def _pictures(row: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return tuple(from_uint8(picture.numpy()) for picture in row["pictures"])


def validate(model: Any, processor: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Greedy reward (fixed) on each task's validation rows."""
    found = {}
    for name, some in rows.items():
        task = load_task(name)
        examples = [Row(_pictures(row), task.read_truth(row["columns"]), row["target"], row["columns"]) for row in some]
        answers = complete(model, processor, task.brief or task.prompt, examples, max_tokens=128)
        found[name] = round(float(score_all(task, [group[0] for group in answers], examples, "fixed").mean()), 4)
    return found


if __name__ == "__main__":
    sys.argv[0] = "pretrain"
    run_command(main)
