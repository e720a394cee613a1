"""`make embedded`: rebuild the committed tiny Qwen2.5-VL from its recipe. About two hours on two cores.

Stages, each kept in the work folder and skipped when it is already there: rows of every task's training split; the vision tower with
heads that name facts (`pretrain_facts`); supervised fine-tuning of the whole model on all tasks by TRL. Validation rows alone are
looked at; the held-out split is never touched.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from policies.vlm.pretrain_facts import FACTS, Facts, Readers
from policies.vlm.tasks import load_task
from portraitkit.cli import run_command
from portraitkit.config import load_config
from portraitkit.images import from_uint8, to_uint8
from portraitkit.vlm.evaluate import score_all
from portraitkit.vlm.generate import complete
from portraitkit.vlm.muon import MuonAdamW
from portraitkit.vlm.rows import Row
from portraitkit.vlm.tiny import build_model, build_processor, whiten_patches

ROWS = {"area": 3000, "area-rotated": 1500, "area-5-35": 1500, "makeup-lips": 3000, "makeup": 4000, "emotion": 4000, "preference": 4000}
"""Training rows of each task."""
WORDS = ("<think>", "</think>", "<answer>", "</answer>", "<reasoning>", "</reasoning>")


@dataclass(frozen=True)
class PretrainConfig:
    """Rebuild the embedded vision-language model."""

    output_dir: str = "portraitkit/vlm/embedded"
    """Where the model and its processor go."""
    work_dir: str = "runs/embedded-vlm"
    """Stages and logs."""
    seed: int = 0
    """Of weights, rows and batches."""
    see_steps: int = 2000
    """Updates of the vision tower with its heads."""
    see_learning_rate: float = 1e-3
    """Constant after a warm-up of 50 updates, then linear to 0 over the last third; half of it for the heads."""
    muon_learning_rate: float = 0.02
    """Of the matrices, see `portraitkit.vlm.muon`."""
    speak_steps: int = 1500
    """Updates of supervised fine-tuning of the whole model."""
    speak_learning_rate: float = 1e-3
    """Cosine, with a warm-up of 5 %; of the matrices ten times that, by Muon."""
    batch: int = 64
    """Rows in an update."""
    validation_rows: int = 100
    """Validation rows of each task."""
    scale: float = 1.0
    """Share of the rows and updates; below 1 only to try the recipe."""


def main(argv: list[str]) -> int:
    """Run the stages that are missing and write the model; returns the exit code."""
    config = load_config(PretrainConfig, argv, prog="python -m policies.vlm.pretrain")
    console = Console(stderr=True)
    work = Path(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    rows = {split: {name: _rows(config, work, name, split, console) for name in ROWS} for split in ("train", "validation")}
    processor = make_processor(rows["train"])
    model = build_model(processor)
    tower = work / "tower.pt"
    if not tower.is_file():
        torch.save(teach_to_see(config, model, processor, rows, console), tower)
    model.model.visual.load_state_dict(torch.load(tower, weights_only=True))
    teach_to_speak(config, model, processor, rows["train"], work, console)
    found = validate(model, processor, rows["validation"])
    console.print(found)
    model.half().save_pretrained(config.output_dir)
    processor.save_pretrained(config.output_dir)
    (Path(config.output_dir) / "recipe.json").write_text(json.dumps({**asdict(config), "rows": ROWS, "validation": found}, indent=2) + "\n")
    return 0


def _rows(config: PretrainConfig, work: Path, name: str, split: str, console: Console) -> list[dict[str, Any]]:
    """Rows with 8-bit pictures, kept in the work folder."""
    path = work / f"{name}_{split}.pt"
    if path.is_file():
        return torch.load(path, weights_only=False)
    task = load_task(name)
    count = int((ROWS[name] if split == "train" else config.validation_rows) * config.scale) or 1
    started, rows = time.monotonic(), []
    assert task.make_row is not None
    for index in range(count):
        columns = dict(task.make_row(split, config.seed * count + index))
        pictures = [torch.from_numpy(to_uint8(picture)) for picture in columns.pop("images", None) or [columns.pop("image")]]
        target = columns.pop("target", None) or task.perfect(task.read_truth(columns))
        rows.append({"pictures": pictures, "target": target, "columns": columns})
    console.print(f"{name} {split}: {count} rows in {time.monotonic() - started:.0f} s", highlight=False)
    torch.save(rows, path)
    return rows


def make_processor(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """The processor, its merges learned from every task's prompts and answers, names of shapes and emotions whole."""
    from policies.vlm.tasks.emotion import EMOTIONS
    from preference_data.makeup_shapes import SHAPES

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
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.model.visual(pixels.reshape(-1, pixels.shape[-1]), grid.expand(len(pixels), -1)).pooler_output
    tokens = torch.cat(list(tokens)) if isinstance(tokens, list | tuple) else tokens
    return tokens.float().view(len(pixels), -1, tokens.shape[-1])


def teach_to_see(
    config: PretrainConfig, model: Any, processor: Any, rows: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], console: Console
) -> dict[str, Tensor]:
    """Train the vision tower with heads for each kind of facts; returns its weights."""
    data = {
        (kind, split): (*pixels_of(processor, some), torch.tensor([found for row in some for found in facts.read(row["columns"])]))
        for kind, facts in FACTS.items()
        for split in rows
        if (some := [row for name in facts.tasks for row in rows[split][name]])
    }
    sample = torch.cat([data[kind, "train"][0][::20].flatten(0, 1)[::7] for kind in FACTS])
    whiten_patches(model, sample[:: len(sample) // 40_000 + 1])
    tower = model.model.visual
    readers = torch.nn.ModuleDict()
    for kind, facts in FACTS.items():
        pixels, grid, truth = data[kind, "train"]
        with torch.no_grad():
            readers[kind] = Readers(look(model, pixels[:: len(pixels) // 256 + 1], grid), truth.mean(0), facts.outputs)
    steps = max(int(config.see_steps * config.scale), 1)
    optimizer = MuonAdamW(
        tower.named_parameters(), muon_learning_rate=config.muon_learning_rate, learning_rate=config.see_learning_rate, weight_decay=0.02
    )
    reading = torch.optim.AdamW(readers.parameters(), lr=config.see_learning_rate / 2)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            one, lambda step: min(1.0, (step + 1) / min(50, steps)) * min(1.0, max(0.02, 3 * (steps - step) / steps))
        )
        for one in (optimizer, reading)
    ]
    started = time.monotonic()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        reading.zero_grad()
        for kind, facts in FACTS.items():
            pixels, grid, truth = data[kind, "train"]
            index = torch.randint(len(pixels), (config.batch // len(FACTS),))
            losses = [facts.loss(found, truth[index]) for found in readers[kind](look(model, pixels[index], grid))]
            (torch.stack(losses).sum() / len(FACTS)).backward()
        torch.nn.utils.clip_grad_norm_([*tower.parameters(), *readers.parameters()], 1.0)
        for one in (optimizer, reading, *schedules):
            one.step()
        if step % 200 == 0 or step == steps:
            console.print(f"see {step}/{steps}, {time.monotonic() - started:.0f} s", highlight=False)
            for kind, facts in FACTS.items():
                _describe(kind, facts, readers[kind], model, *data[kind, "validation"], console)
            torch.save(tower.state_dict(), Path(config.work_dir) / "tower_so_far.pt")
    return tower.state_dict()


@torch.no_grad()
def _describe(kind: str, facts: Facts, readers: Any, model: Any, pixels: Tensor, grid: Tensor, truth: Tensor, console: Console) -> None:
    """Print what both readers make of the validation pictures."""
    found = [readers(look(model, part, grid)) for part in pixels.split(100)]
    for name, parts in zip(("places", "glance"), zip(*found, strict=True), strict=True):
        figures = facts.describe(torch.cat(parts), truth)
        console.print(f"  {kind} {name}  " + "  ".join(f"{what} {value:.3f}" for what, value in figures.items()), highlight=False)


def teach_to_speak(
    config: PretrainConfig, model: Any, processor: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]], work: Path, console: Console
) -> None:
    """Supervised fine-tuning of the whole model on all tasks' answers, by TRL."""
    from trl import SFTConfig

    from portraitkit.vlm.callbacks import Say
    from portraitkit.vlm.train import make_sft_trainer

    prompts, examples = [], []
    for name, some in rows.items():
        task = load_task(name)
        prompts += [task.brief or task.prompt] * len(some)
        examples += [Row(_pictures(row), None, row["target"], {}) for row in some]
    steps = max(int(config.speak_steps * config.scale), 1)
    arguments = SFTConfig(
        output_dir=str(work / "speak"),
        max_steps=steps,
        per_device_train_batch_size=config.batch,
        learning_rate=config.speak_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(steps // 20, 1),
        max_length=None,
        completion_only_loss=True,
        use_cpu=True,
        bf16=True,
        seed=config.seed,
        logging_steps=50,
        save_steps=250,
        save_total_limit=1,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=False,
    )
    rate = config.speak_learning_rate
    optimizer = MuonAdamW(model.named_parameters(), muon_learning_rate=10 * rate, learning_rate=rate)
    trainer = make_sft_trainer(model, processor, prompts, examples, arguments, Say(console), optimizer=optimizer)
    kept = sorted((work / "speak").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)


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
