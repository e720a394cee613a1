"""`align-vlm --export`: a task's rows and reward as files that verl or EasyR1 trains on, with the command that does."""

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.align.inputs import check_all_lengths, open_all_rows, prompt_of, readable_rows, write_aside
from policies.vlm.export_reward import ground_truth_of
from policies.vlm.tasks import load_task
from portraitkit.config import config_to_dict
from portraitkit.errors import ConfigError
from portraitkit.files.atomic import replacing_folder, write_text
from portraitkit.report.page import page_environment
from portraitkit.runs.terminal import Interruptible, counting
from portraitkit.vlm.context import Limit, limit_of, shown
from portraitkit.vlm.model import load_processor
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Task

NAMES = {"train": "train", "validation": "validation", "held_out": "test"}  # Our splits and what their files are called
MARK = "export.json"
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
AT_ONCE = 64
SERVED = "Qwen/Qwen2.5-VL-7B-Instruct"  # Trained there in place of the embedded model, which is of no use on a cluster
FACTOR = 28
LOSSES = {"grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm", "dapo": "token-mean", "bnpo": "token-mean"}


def run_export(config: AlignVlmConfig) -> int:
    """Write the folder; returns the exit code (0, or 130 / 143 when interrupted, with nothing left behind).
    ConfigError: the folder holds something else, or the prompt holds what the other trainer takes for a picture.
    DataError: rows cannot be read, do not fit, or their truth cannot be written."""
    console, folder = Console(stderr=True), Path(config.folder)
    task = load_task(config.task)
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise ConfigError(f"--output-dir {folder}: holds files that are no export; choose another folder or empty it")
        if not config.overwrite:
            raise ConfigError(f"--output-dir {folder}: holds an export; use --overwrite or another folder")
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output-dir {folder}: is a file; give a folder")
    prompt = task.prompt if config.model == "embedded" and config.prompt == "auto" else prompt_of(config, task)
    if found := next((word for word in PLACEHOLDERS if word in prompt), None):
        raise ConfigError(f"--export {config.export}: the prompt of {task.name} holds {found}, which stands for a picture there")
    if config.model == "embedded":
        processor, limit = None, Limit(FACTOR, FACTOR**2, config.max_pixels) if config.max_pixels else None
    else:
        processor = load_processor(config.model, max_pixels=config.max_pixels)
        limit = limit_of(processor)
    rows, aside = readable_rows(config, open_all_rows(config, task, console), console, folder / "quarantine.jsonl")
    lengths = check_all_lengths(config, processor, rows, prompt) if processor is not None else None
    truths = {split: [ground_truth_of(task, row) for row in some] for split, some in rows.items()}
    try:
        with replacing_folder(folder) as part:
            with Interruptible() as interrupt, counting(console, "writing rows", sum(map(len, rows.values()))) as advance:
                for split, some in rows.items():
                    path = part / f"{NAMES[split]}.parquet"
                    for done in _write(path, config.export, task, prompt, NAMES[split], some, truths[split], limit):
                        advance(done)
                        if interrupt.requested:
                            raise SystemExit(interrupt.exit_code)
            write_aside(part / "quarantine.jsonl", aside)
            _write_words(part, folder, config, task, rows, lengths.prompt if lengths else None)
    except OSError as error:
        raise ConfigError(f"--output-dir {folder}: cannot be written ({error.strerror}); choose another folder") from error
    counts = ", ".join(f"{NAMES[split]} {len(some)}" for split, some in rows.items())
    print(f"{folder}: {counts} rows for {config.export}; README.md has the command that trains on them")
    return 0


def export_features(kind: str) -> Any:
    """The columns that verl or EasyR1 reads, as `datasets` describes them."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    if kind == "easyr1":
        return Features({"prompt": text, "images": List(Image()), "answer": text})
    return Features(
        {
            "data_source": text,
            "prompt": List({"role": text, "content": text}),
            "images": List(Image()),
            "ability": text,
            "reward_model": {"style": text, "ground_truth": text},
            "extra_info": {"split": text, "index": Value("int64"), "row": text},
        }
    )


def _write(
    path: Path, kind: str, task: Task, prompt: str, split: str, rows: Sequence[Row], truths: Sequence[str], limit: Limit | None
) -> Iterator[int]:
    """Write one split, some rows at a time; yields how many were written."""
    import pyarrow
    from pyarrow import parquet

    schema = export_features(kind).arrow_schema
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), AT_ONCE):
            part = []
            for index in range(start, min(start + AT_ONCE, len(rows))):
                images = []
                for image in shown(rows[index], limit):
                    image.save(buffer := io.BytesIO(), "PNG")
                    images.append({"bytes": buffer.getvalue(), "path": None})
                content = "<image>" * len(images) + prompt
                if kind == "easyr1":
                    part.append({"prompt": content, "images": images, "answer": truths[index]})
                    continue
                row = {"data_source": f"portraitkit/{task.name}", "prompt": [{"role": "user", "content": content}], "images": images}
                row |= {"ability": task.name, "reward_model": {"style": "rule", "ground_truth": truths[index]}}
                part.append(row | {"extra_info": {"split": split, "index": index, "row": Path(rows[index].name).name}})
            writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))
            yield len(part)


def _write_words(
    part: Path, folder: Path, config: AlignVlmConfig, task: Task, rows: Mapping[str, Sequence[Row]], longest: int | None
) -> None:
    """reward.py, README.md and the mark; the user's own task file goes along."""
    source, colon, name = config.task.rpartition(":")
    own = Path(source) if colon and source.endswith(".py") else None
    if own is not None:
        if own.name == "reward.py":
            raise ConfigError(f"--task {config.task}: reward.py is what the export writes; rename the file")
        shutil.copyfile(own, part / own.name)
    environment = page_environment(Path(__file__).parent / "templates", autoescape=False)
    model = SERVED if config.model == "embedded" else config.model
    rate = config.rate_of({**vars(config), "model": model, "weights": "all"})  # they train all weights, or a LoRA
    prompt_tokens = -(-longest // 64) * 64 if longest else 4096
    values = {
        "kind": config.export,
        "config": config,
        "task": config.task,
        "task_name": task.name,
        "file": own.name if own else "",
        "object": name,
        "folder": folder.resolve(),
        "model": model,
        "embedded": config.model == "embedded",
        "synthetic": config.data == "embedded",
        "counts": {NAMES[split]: len(some) for split, some in rows.items()},
        "longest": longest,
        "prompt_tokens": prompt_tokens,
        "learning_rate": rate,
        "loss": LOSSES.get(config.loss_type),
    }
    for template, target in ((f"export_{config.export}_reward.py.j2", "reward.py"), (f"export_{config.export}.md.j2", "README.md")):
        write_text(part / target, environment.get_template(template).render(values).rstrip() + "\n")
    write_text(part / MARK, json.dumps(config_to_dict(config), indent=2) + "\n")
