"""docs/add_a_task.md, followed literally."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_vlm import ANSWER, write_tiny_vlm

from policies.vlm.main import align_vlm, score_completions
from portraitkit.pictures.images import write_image

GUIDE = (Path(__file__).parents[2] / "docs" / "add_a_task.md").read_text(encoding="utf-8")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The guide's file, saved under the guide's name, in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (name,) = re.findall(r"Save as `(.*?)`", GUIDE)
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(code)
    return f"{name}:TASK"


def test_answers_are_scored_as_the_guide_shows(task, command):
    rows, printed = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    Path("rows.jsonl").write_text(rows)
    assert f"score-completions --task {task} rows.jsonl" in GUIDE
    code, out, err = command(score_completions, "--task", task, "rows.jsonl")
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()] == [json.loads(line) for line in printed.splitlines()]


def test_the_task_is_probed_and_trained(task, command):
    write_tiny_vlm("model", "<answer>warm</answer> <answer>cold</answer> light? ", [*ANSWER, "warm", "cold"])
    sizes = {
        "device": "cpu",
        "dtype": "float32",
        "train-rows": 4,
        "validation-rows": 2,
        "held-out-rows": 4,
        "probe-rows": 4,
        "samples": 2,
        "max-tokens": 6,
        "validation-steps": 0,
        "sft-steps": 2,
        "sft-batch": 2,
        "max-train-steps": 1,
        "prompts-per-step": 2,
        "group-size": 2,
    }
    small = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    data = write_data(Path("data"))
    lines = [line for line in GUIDE.splitlines() if line.startswith(".venv/bin/align-vlm ")]
    assert len(lines) == 3
    for line in lines:
        code, _, err = command(align_vlm, *line.replace("MODEL", "./model").replace("DATA", data).split()[1:], *small)
        assert code == 0, err
    found = json.loads(Path("runs/light-probe/probe.json").read_text())
    assert found["inversions"] == 0 and found["perfect_share"] == 1 and found["constant_answer"].startswith("<answer>")
    for folder, made in (("runs/light", True), ("runs/light-data", False)):
        summary = json.loads(Path(folder, "summary.json").read_text())
        assert summary["task"] == "light" and summary["synthetic"] is made


def write_data(folder: Path) -> str:
    folder.mkdir()
    for name, count in (("train", 6), ("test", 4)):
        rows = []
        for index in range(count):
            write_image(folder / f"{name}{index}.png", torch.full((3, 32, 32), index / 10))
            rows.append(json.dumps({"image": f"{name}{index}.png", "light": "warm"}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return str(folder)
