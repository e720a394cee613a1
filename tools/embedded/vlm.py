"""Train a tiny Qwen2.5-VL as the embedded one. About two hours on one core.

    python -m tools.embedded.vlm --portraits FOLDER

Rows of every task's training split; the vision tower learns to see what they show (`vlm_see`); then the language part learns to read what
the tower sees (`vlm_read`), mostly in a careless annotator's words: to be careful is left for reinforcement learning. With a folder of
portraits, makeup and expressions are rendered on its training people, too, and its smiling people are shown as they are; without, the
weights know two faces. Rows and states are kept in the work folder and gone on from. Validation people alone are looked at; the held-out
ones are never touched.

Every 100 updates of the second stage the weights are kept and the greedy rewards on validation rows written to `read.jsonl`. Which of them
ships is said by `READ.stop`; run again with it, the command takes those weights and writes them.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from policies.vlm.tasks import load_task, synthetic_rows
from portraitkit.cli import run_command
from portraitkit.config import Options, load_config
from portraitkit.pictures.images import from_uint8, to_uint8
from portraitkit.processor import bf16_autocast
from portraitkit.vlm.evaluate import score_all
from portraitkit.vlm.generate import complete
from portraitkit.vlm.model import load_model, load_processor
from portraitkit.vlm.rows import Row
from preference_data.people.synthetic import Person
from tools.embedded.people import WANTED, draw_person, people_seen, read_faces, smile_row, those
from tools.embedded.tiny_vlm import build_model, build_processor
from tools.embedded.vlm_read import Phase, make_heads, make_lessons, teach_to_read
from tools.embedded.vlm_see import See, patches_of, teach_to_see

ROWS = {
    "area": 1200,
    "area-rotated": 600,
    "area-5-35": 600,
    "makeup-lips": 2000,
    "makeup": 2500,
    "emotion": 2500,
    "preference": 1000,
}
"""Training rows of each task on morphs of two people, or with no people at all."""
ON_PEOPLE: dict[str, tuple[str, int, Callable[..., Mapping[str, Any]]]] = {
    "makeup-lips": ("makeup-lips", 2000, partial(synthetic_rows.makeup_row, lips_only=True)),
    "makeup": ("makeup", 2500, synthetic_rows.makeup_row),
    "emotion": ("emotion", 2500, synthetic_rows.emotion_row),
    "smiles": ("emotion", 600, smile_row),
}
"""What is made of the folder's people beside them: of which task, how many rows, and by what."""
FIRST_ON_PEOPLE = 500_000
"""Seed of the first of these, so that no row repeats what another shows."""
SEE = See(1200)
"""Of the tower, two seconds an update."""
READ = Phase(1000, 2e-3, 0.012, 0.7, {"area": 8, "makeup": 40, "emotion": 32, "preference": 8}, careless=0.65)
"""Of the language part alone, two seconds an update. Rewards of `makeup-lips` are 1 - dE76 / 100."""
EXAMINED, EXAMINED_TASKS = 64, ("area", "makeup-lips", "makeup", "emotion")
"""Validation rows of each task that are looked at every 100 updates."""
METRICS = ("de76_missing_100", "bare_as_bare", "made_up_as_bare")
"""Of `policies.vlm.tasks.makeup_scores`, told beside the rewards."""
WORTH_A_POOL = 500
"""Rows from which on processes are started for them."""
WORDS = ("<think>", "</think>", "<answer>", "</answer>", "<reasoning>", "</reasoning>")


@dataclass(frozen=True)
class PretrainConfig(Options):
    """Rebuild the embedded vision-language model."""

    output_dir: str = "runs/embedded-vlm/model"
    """Where the model and its processor go; to portraitkit/vlm/embedded once they are better than what is committed there."""
    work_dir: str = "runs/embedded-vlm"
    """Stages and logs."""
    start: str = ""
    """Folder of weights to go on from, such as those committed; untrained ones if empty."""
    portraits: str = ""
    """Folder of portraits whose training people are made up and perform expressions, as `make-preferences build` takes it; none without."""
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
    work, folder = Path(config.work_dir), Path(config.portraits) if config.portraits else None
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    train, validation = training_rows(config, folder, work, console), validation_rows(config, folder, work, console)
    if config.start:
        processor, model = load_processor(config.start), load_model(config.start)
    else:
        processor = make_processor(train)
        model = build_model(processor)
        start(model, processor, train)
    see = replace(SEE, steps=max(int(SEE.steps * config.scale), 1))
    teach_to_see(model, processor, train, validation, see, partial(look, model), work / "see.pt", console)
    heads = make_heads(model.config.text_config.hidden_size)
    lessons = cache(lambda: make_lessons(model, processor, train, lambda some: tokens_of(model, processor, some)))
    some = {name: rows[:EXAMINED] for name, rows in validation.items() if name.split(",")[0] in EXAMINED_TASKS}
    phase = replace(READ, steps=max(int(READ.steps * config.scale), 1), stop=READ.stop and max(int(READ.stop * config.scale), 1))
    teach_to_read(model, heads, lessons, phase, lambda: validate(model, processor, some), work / "read.pt", console)
    recipe = {name: getattr(config, name) for name in ("seed", "validation_rows", "scale")}
    recipe |= {"start": sha256((Path(config.start) / "model.safetensors").read_bytes()).hexdigest() if config.start else None}
    recipe |= {"rows": ROWS, "rows_on_people": {name: count for name, (_, count, _) in ON_PEOPLE.items()} if folder else {}}
    recipe |= {"see": asdict(SEE), "read": asdict(READ), "validation": validate(model, processor, validation)}
    write(model, processor, Path(config.output_dir), recipe | {"people": people_seen(folder, work)}, console)
    return 0


def write(model: Any, processor: Any, folder: Path, recipe: Mapping[str, Any], console: Console) -> None:
    """Write a model in half precision, its processor and how it was made; the model in memory stays as it is."""
    console.print(recipe["validation"])
    deepcopy(model).half().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


Rows = dict[str, list[dict[str, Any]]]


def training_rows(config: PretrainConfig, folder: Path | None, work: Path, console: Console) -> Rows:
    """Rows of each task; those on people, where there is a folder, among those on morphs."""
    rows = {}
    for name, count in ROWS.items():
        rows[name] = open_rows(work, name, "train", share(count, config.seed, config.scale), console)
        for made, (task, extra, _) in ON_PEOPLE.items() if folder else ():
            if task == name:
                seeds = share(extra, config.seed, config.scale, first=FIRST_ON_PEOPLE)
                rows[name] += open_rows(work, made, "train", seeds, console, folder=folder)
        random.Random(config.seed).shuffle(rows[name])
    return rows


def validation_rows(config: PretrainConfig, folder: Path | None, work: Path, console: Console) -> Rows:
    """Rows of each task on validation morphs; under "TASK, people" and "emotion, smiles" those on the folder's validation people."""
    seeds = share(config.validation_rows, config.seed, config.scale)
    rows = {name: open_rows(work, name, "validation", seeds, console) for name in ROWS}
    if folder:
        for made, (task, _, _) in ON_PEOPLE.items():
            rows[f"{task}, {'people' if made == task else made}"] = open_rows(work, made, "validation", seeds, console, folder=folder)
    return rows


def share(count: int, seed: int, scale: float, *, first: int = 0) -> range:
    """The seeds of `count` rows, or of as many of them as a scale below 1 leaves."""
    count = int(count * scale) or 1
    return range(first + seed * count, first + (seed + 1) * count)


def open_rows(work: Path, name: str, split: str, seeds: range, console: Console, *, folder: Path | None = None) -> list[dict[str, Any]]:
    """A task's rows of these seeds with 8-bit pictures, kept in the work folder; on people of a folder, if one is given."""
    path = work / f"{name}{'_people' if folder else ''}_{split}_{len(seeds)}.pt"
    if path.is_file():
        return torch.load(path, weights_only=False)
    started = time.monotonic()
    if folder:
        read_faces(folder, split, work)  # once, before the processes do
    make = partial(_make_row, name, split, folder, work)
    if len(seeds) < WORTH_A_POOL:
        rows = list(map(make, seeds))
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            rows = list(pool.map(make, seeds, chunksize=20))
    for row in rows:
        row["pictures"] = [torch.from_numpy(picture) for picture in row["pictures"]]
    where = "on people" if folder else "on morphs"
    console.print(f"{name} {where}, {split}: {len(rows)} rows in {time.monotonic() - started:.0f} s", highlight=False)
    torch.save(rows, path)
    return rows


def _make_row(name: str, split: str, folder: Path | None, work: Path, seed: int) -> dict[str, Any]:
    """A row with its pictures as 8-bit arrays."""
    task = load_task(ON_PEOPLE[name][0] if folder else name)
    assert task.make_row is not None
    columns = dict(ON_PEOPLE[name][2](split, seed, draw=_draw(name, split, folder, work)) if folder else task.make_row(split, seed))
    pictures = [to_uint8(picture) for picture in columns.pop("images", None) or [columns.pop("image")]]
    target = columns.pop("target", None) or task.perfect(task.read_truth(columns))
    return {"pictures": pictures, "target": target, "columns": columns}


@cache
def _draw(name: str, split: str, folder: Path, work: Path) -> Callable[[torch.Generator], Person]:
    """Gives people of a folder's split whose photos suit the task."""
    faces = read_faces(folder, split, work)
    return partial(draw_person, those(faces, folder, WANTED[name]) if name in WANTED else faces)


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
    patches, grid = patches_of(processor, [picture.permute(2, 0, 1) for row in rows for picture in row["pictures"]])
    return patches.bfloat16(), grid


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
    """Set what has a closed form, from every 60th of each task's rows."""
    some = [pixels_of(processor, part[::every]) for part in rows.values()]
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
    """Greedy reward (fixed) on rows of each task, whose name stands before the comma if there is one; and makeup's main metrics."""
    found = {}
    for name, some in rows.items():
        task = load_task(name.split(",")[0])
        examples = [Row(_pictures(row), task.read_truth(row["columns"]), row["target"], row["columns"]) for row in some]
        answers = [group[0] for group in complete(model, processor, task.brief or task.prompt, examples, max_tokens=96)]
        found[name] = round(float(score_all(task, answers, examples, "fixed").mean()), 4)
        metrics = task.metrics([answer.text for answer in answers], [row.truth for row in examples]) if task.metrics else {}
        found |= {f"{name}, {metric}": round(metrics[metric], 4) for metric in METRICS if metric in metrics}
    return found


if __name__ == "__main__":
    sys.argv[0] = "pretrain"
    run_command(main)
