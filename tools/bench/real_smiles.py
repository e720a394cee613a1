"""`python -m tools.bench.real_smiles PHOTOS`: the embedded emotion task asked about real faces, neutral and smiling; nothing is rendered.

PHOTOS holds people who were photographed with both (metadata.jsonl, and groups.csv with the column `expression`), as the Face Research Lab
London Set does. What counts is whether the answer names happiness and AU12 on the smiling photo and not on the neutral one.
"""

import argparse
import csv
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from policies.retoucher.photos import open_photos, read_photos
from policies.vlm.tasks import load_task
from portraitkit.stats import wilson_interval
from portraitkit.vlm.generate import complete
from portraitkit.vlm.model import be_quiet, load_model, load_processor, merge_adapter
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import asked_briefly

SHOWN = ("neutral", "smiling")


def main() -> None:
    """Print how often each answer came on either photo."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.real_smiles")
    parser.add_argument("photos", type=Path, help="a folder of portraits with groups.csv")
    parser.add_argument("--split", default="held_out", choices=("train", "validation", "held_out"))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--adapter", default=None)
    asked = parser.parse_args()
    be_quiet()
    with (asked.photos / "groups.csv").open(encoding="utf-8", newline="") as file:
        expressions = {row["file_name"]: row["expression"] for row in csv.DictReader(file)}
    folder = read_photos(str(asked.photos), None, Console(stderr=True))
    assert folder is not None
    rows = [row for row in folder.rows if row.split == asked.split and expressions.get(folder.name(row)) in SHOWN]
    batch = open_photos(type(folder)(folder.path, rows, []), 128).load(asked.split, list(range(len(rows))))
    task, processor = load_task("emotion"), load_processor(asked.model)
    model = load_model(asked.model) if asked.adapter is None else merge_adapter(load_model(asked.model), asked.adapter)
    questions = [Row((picture,), None, "", {}) for picture in batch.photos.source]
    prompt = task.brief if asked_briefly(asked.model) and task.brief else task.prompt
    answers = [group[0].text for group in complete(model, processor, prompt, questions, max_tokens=128)]
    parsed = [task.score(text, task.read_truth({"AUs": ["AU12"], "labels": ["happiness"]}), "fixed").parsed or {} for text in answers]
    seen = {
        "happiness": [found.get("label") == "happiness" for found in parsed],
        "neutral": [found.get("label") == "neutral" for found in parsed],
        "AU12, lip corners up": ["AU12" in found.get("AUs", ()) for found in parsed],
        "AU6, cheeks up": ["AU6" in found.get("AUs", ()) for found in parsed],
    }
    table = Table(title=f"{len(rows)} photos of {len(set(batch.people))} people, greedy answers of {asked.model}", title_justify="left")
    for column in ("share of photos [95 %]", *SHOWN):
        table.add_column(column)
    of = [expressions[name] for name in batch.ids]
    for answer, given in seen.items():
        cells = []
        for shown in SHOWN:
            some = torch.tensor([value for value, expression in zip(given, of, strict=True) if expression == shown])
            low, high = wilson_interval(int(some.sum()), len(some))
            cells.append(f"{float(some.float().mean()):.2f} [{low:.2f}, {high:.2f}]")
        table.add_row(answer, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
