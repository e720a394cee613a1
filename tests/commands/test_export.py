"""align-vlm --export and --reward-file: other trainers' files, and their rewards in ours."""

import importlib.util
import inspect
import json
import sys
from io import BytesIO

import numpy as np
import pytest
from datasets import Image, List, load_dataset
from PIL import Image as PilImage
from tiny_vlm import write_rows, write_tiny_vlm

from policies.vlm.export_reward import exported_reward, ground_truth_of
from policies.vlm.main import align_vlm, score_completions
from policies.vlm.tasks import load_task
from portraitkit.vlm.rows import make_rows

TASKS = ("area", "makeup", "makeup-lips", "emotion", "preference")
FEW = ["--train-rows", 5, "--validation-rows", 2, "--held-out-rows", 3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load_function(path):
    """compute_score of a file, loaded as verl does it."""
    spec = importlib.util.spec_from_file_location("custom_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("custom_module", None)
    return module.compute_score


def answers_of(task, truth, other):
    right = task.perfect(truth)
    return [right, task.perfect(other), right[: len(right) // 2], right + right, "", "<answer>7</answer>", right.replace("answer", "anser")]


@pytest.mark.parametrize("mode", ["paper", "fixed"])
@pytest.mark.parametrize("name", TASKS)
def test_the_exported_reward_is_that_of_score_completions(command, tmp_path, name, mode):
    code, out, err = command(align_vlm, "--task", name, "--mode", mode, "--export", "verl", "--output-dir", tmp_path / "verl", *FEW)
    assert code == 0, err
    compute = load_function(tmp_path / "verl" / "reward.py")
    assert list(inspect.signature(compute).parameters)[:4] == ["data_source", "solution_str", "ground_truth", "extra_info"]
    task = load_task(name)
    rows = load_dataset("parquet", data_files=str(tmp_path / "verl" / "train.parquet"), split="train")
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    lines, ours = [], []
    for place, truth in enumerate(truths):
        columns = json.loads(truth)
        other = json.loads(truths[(place + 1) % len(truths)])
        for answer in answers_of(task, task.read_truth(columns), task.read_truth(other)):
            lines.append(json.dumps({"completion": answer, **columns}))
            row = rows[place]
            given = {"data_source": row["data_source"], "ground_truth": truth, "extra_info": row["extra_info"]}
            ours.append(compute(solution_str=answer, **given))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = command(score_completions, "--task", name, "--mode", mode, tmp_path / "rows.jsonl")
    assert code == 0, err
    assert ours == [json.loads(line)["reward"] for line in out.splitlines()] and len(set(ours)) > 1


def test_verls_columns_and_pictures(command, tmp_path):
    code, out, err = command(align_vlm, "--task", "preference", "--export", "verl", "--output-dir", tmp_path / "verl", *FEW)
    assert code == 0 and "train 5, validation 2, test 3" in out, err
    data = load_dataset("parquet", data_files={split: str(tmp_path / "verl" / f"{split}.parquet") for split in ("train", "test")})
    assert data["train"].num_rows == 5 and data["test"].num_rows == 3
    task = load_task("preference")
    made = {"train": make_rows(task, "train", 5, 0), "test": make_rows(task, "held_out", 3, 0)}
    for split, rows in made.items():
        assert isinstance(data[split].features["images"], List) and isinstance(data[split].features["images"].feature, Image)
        for index, (row, item) in enumerate(zip(rows, data[split], strict=True)):
            assert item["data_source"] == "portraitkit/preference" and item["ability"] == "preference"
            (turn,) = item["prompt"]
            assert turn == {"role": "user", "content": "<image>" * len(row.pictures) + task.prompt}
            assert (
                item["reward_model"]["style"] == "rule" and task.read_truth(json.loads(item["reward_model"]["ground_truth"])) == row.truth
            )
            assert item["extra_info"]["split"] == split and item["extra_info"]["index"] == index
            for ours, theirs in zip(row.images(), item["images"], strict=True):
                assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    words = (tmp_path / "verl" / "README.md").read_text()
    assert f"reward.custom_reward_function.path={tmp_path / 'verl'}/reward.py" in words and "**synthetic**" in words
    assert "data.train_batch_size=16" in words and "rollout.n=8" in words and "{{" not in words


def test_easyr1s_columns_and_reward(command, tmp_path):
    code, _, err = command(align_vlm, "--export", "easyr1", "--output-dir", tmp_path / "easy", *FEW)
    assert code == 0, err
    rows = load_dataset("parquet", data_files=str(tmp_path / "easy" / "validation.parquet"), split="train")
    assert set(rows.column_names) == {"prompt", "images", "answer"} and rows[0]["prompt"].startswith("<image>")
    compute, reward = load_function(tmp_path / "easy" / "reward.py"), exported_reward("area", "fixed")
    inputs = [{"response": "<answer>3.5</answer>", "response_length": 5, "ground_truth": row["answer"]} for row in rows]
    assert compute(inputs) == [{"overall": reward("<answer>3.5</answer>", row["answer"])} for row in rows]
    assert "worker.reward.reward_function=" in (tmp_path / "easy" / "README.md").read_text()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's with photos of two sizes, a task file and a small model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "data", 7, 3, lambda index: {"gender": "woman", "note": "kept out"}, lambda index: 300 if index % 2 else 40)
    (tmp_path / "mine.py").write_text("from policies.vlm.tasks.shape_area import area_task\n\nTASK = area_task(name='mine')\n")
    write_tiny_vlm("model")
    return tmp_path


def test_a_users_task_data_and_model(command, own):
    options = ["--task", "mine.py:TASK", "--data", "data", "--model", "./model", "--train-rows", 0, "--held-out-rows", 0]
    code, out, err = command(align_vlm, *options, "--max-pixels", 64 * 64, "--validation-rows", 1, "--export", "verl")
    assert code == 0 and "train 6, validation 1, test 3" in out, err
    folder = own / "exports" / "verl-mine-TASK"
    rows = load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train").cast_column("images", List(Image(decode=False)))
    sizes = {PilImage.open(BytesIO(row["images"][0]["bytes"])).size for row in rows}
    assert (40, 48) in sizes and len(sizes) == 2 and all(width * height <= 64 * 64 for width, height in sizes)
    assert json.loads(rows[0]["reward_model"]["ground_truth"]) == {"area": 10.0}  # nothing of the row but what the reward reads
    assert rows[1]["extra_info"]["row"] == "train.jsonl line 2"
    compute = load_function(folder / "reward.py")
    answer = "<answer>10.00</answer>"
    assert compute("x", answer, rows[0]["reward_model"]["ground_truth"]) == exported_reward("area", "fixed")(answer, '{"area": 10.0}')
    assert "longest prompt with its pictures has" in (folder / "README.md").read_text()
    code, _, err = command(align_vlm, *options, "--export", "verl")
    assert code == 2 and "holds an export; use --overwrite" in err
    assert command(align_vlm, *options, "--export", "verl", "--overwrite")[0] == 0
    code, _, err = command(align_vlm, *options, "--export", "verl", "--output-dir", "data")
    assert code == 2 and "no export" in err and (own / "data" / "train.jsonl").is_file()
    code, _, err = command(align_vlm, *options, "--export", "verl", "--max-tokens", 2047, "--output-dir", "long")
    assert code == 2 and "train.jsonl line 1: prompt" in err and not [*own.glob("*long*")]


VERLS = """
import json

CALLS = []


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    CALLS.append((data_source, solution_str, ground_truth, extra_info))
    return {"score": float(len(solution_str) % 3), "acc": 1.0}


def wrong(answer, truth):
    return 0.0


def words(data_source, solution_str, ground_truth, extra_info=None):
    return "good"


async def later(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0
"""


def test_a_reward_file_of_verl_trains_a_model(command, own):
    (own / "score.py").write_text(VERLS)
    small = [
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--probe-rows",
        2,
        "--prompts-per-step",
        2,
        "--group-size",
        2,
        "--max-tokens",
        6,
        "--samples",
        2,
        "--max-train-steps",
        1,
    ]
    options = ["--model", "./model", "--data", "data", "--validation-rows", 1, "--held-out-rows", 2, "--validation-steps", 0, *small]
    options += ["--device", "cpu", "--dtype", "float32"]
    code, _, err = command(align_vlm, *options, "--output-dir", "run", "--reward-file", "score.py:compute_score")
    assert code == 0, err
    summary = json.loads((own / "run" / "summary.json").read_text())
    answers = [json.loads(line) for line in (own / "run" / "answers.jsonl").read_text().splitlines()]
    for line in answers:
        assert line["after"]["reward"] == len(line["after"]["greedy"]) % 3 and set(line["after"]["parts"]) == {"reward"}
    assert summary["task"] == "area" and "relative_error" in summary["metrics"]["after"]
    for name, words in (
        ("wrong", "by name"),
        ("later", "plain function"),
        ("words", "must give a finite number"),
        ("nothing", "has no 'nothing'"),
    ):
        code, _, err = command(align_vlm, *options, "--output-dir", "other", "--reward-file", f"score.py:{name}")
        message = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(message) == 1 and words in message[0], err


def test_an_exported_reward_works_in_our_own_loop(command, own):
    assert command(align_vlm, "--export", "verl", "--output-dir", "verl", *FEW)[0] == 0
    from policies.vlm.export_reward import with_reward_file

    task = load_task("area")
    theirs = with_reward_file(task, "verl/reward.py:compute_score")
    for row in make_rows(task, "train", 4, 0):
        truth = theirs.read_truth(row.columns)
        assert truth.ground_truth == ground_truth_of(task, row)
        for answer in (task.perfect(row.truth), "<answer>3</answer>", ""):
            assert theirs.score(answer, truth, "fixed").reward == pytest.approx(task.score(answer, row.truth, "fixed").reward, abs=1e-9)
