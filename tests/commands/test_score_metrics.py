"""`score-completions --metrics`: the figures of all rows together, groups, ROUGE-L and a judge behind an endpoint."""

import json
import os

import pytest
from scripted_endpoint import ScriptedEndpoint

from policies.vlm.main import score_completions
from policies.vlm.score import read_score

pytestmark = pytest.mark.usefixtures("quick_endpoint")
SAD = "<think>The brows come down (AU4).</think><answer>sadness</answer>"
ROWS = [
    {"completion": SAD, "AUs": ["AU4"], "labels": ["sadness"], "dataset": "a", "description": "The brows come down (AU4)."},
    {"completion": SAD, "AUs": ["AU4"], "labels": ["fear"], "dataset": "a", "description": "Wide eyes (AU5)."},
    {"completion": "?", "AUs": ["AU12"], "labels": ["happiness"], "meta_info": {"age": 3}, "dataset": "b", "description": ""},
]


@pytest.fixture
def score(command, tmp_path):
    def call(*options, task="emotion", rows=ROWS):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, out, err = command(score_completions, tmp_path / "rows.jsonl", "--task", task, *options)
        file = tmp_path / "m.json"
        return code, out, err, json.loads(file.read_text()) if file.is_file() else None

    return call


def test_a_row_without_its_group_is_named_by_its_line(command, tmp_path):
    rows = [ROWS[0], {key: value for key, value in ROWS[1].items() if key != "dataset"}]
    (tmp_path / "rows.jsonl").write_text("\n" + "\n\n".join(json.dumps(row) for row in rows))
    options = ("--task", "emotion", "--metrics", tmp_path / "m.json", "--group-by", "dataset")
    code, out, err = command(score_completions, tmp_path / "rows.jsonl", *options)
    assert code == 2 and out == "" and "rows.jsonl line 4: has no 'dataset'" in err


def test_the_figures_of_all_rows(score, tmp_path):
    code, out, err, found = score("--metrics", tmp_path / "m.json", "--group-by", "dataset", "--au-list", "4,12")
    assert code == 0 and len(out.splitlines()) == 3 and "action_units.micro_f1 0.8" in err
    assert found["action_units"]["macro_f1"] == pytest.approx(0.5) and found["emotions"]["accuracy"] == pytest.approx(1 / 3)
    assert found["unreadable"] == pytest.approx(1 / 3) and found["reward"] == pytest.approx((3 + 2 + 0) / 3)
    assert found["groups"]["a"]["rows"] == 2 and found["groups"]["b"]["unreadable"] == 1
    assert found["rouge_l"]["rows"] == 2 and "rouge_score" in found["rouge_l"]["package"]
    assert found["rege"]["emotions"] == pytest.approx(100 / 3 + found["rouge_l"]["per_cent"])
    assert os.listdir(tmp_path).count("m.json") == 1


def test_a_judge_whose_failures_are_not_zero(score, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    answers = {"The brows come down (AU4).": "<score>9</score>", "Wide eyes (AU5).": "I would say eleven."}

    def script(body):
        text = body["messages"][0]["content"][0]["text"]
        return next(answer for reference, answer in answers.items() if f"Reference: {reference}" in text)

    with ScriptedEndpoint(script) as server:
        options = ("--judge-url", server.url, "--judge-model", "referee", "--judge-key-env", "JUDGE_KEY")
        code, _, err, found = score("--metrics", tmp_path / "m.json", *options)
    assert code == 0 and "judge.failed 1" in err
    judged = found["judge"]
    assert (judged["judge"], judged["mean"], judged["scored"], judged["failed"]) == ("referee", 9, 1, 1)
    assert judged["scores"] == [9, None] and "eleven" in judged["failures"][0]["reason"]


@pytest.mark.parametrize(
    ("text", "score"),
    [("<score>10</score>", 10), ("<score> 1 </score>", 1), ("<score>0</score>", None), ("<score>11</score>", None), ("7", None)]
    + [("<score>7.5</score>", None), ("<score>3</score><score>4</score>", None), (None, None)],
)
def test_only_one_whole_number_is_a_score(text, score):
    found, reason = read_score(text, "down" if text is None else "")
    assert found == score and bool(reason) == (score is None)


def test_other_tasks_report_theirs_or_say_that_they_have_none(score, tmp_path):
    makeup = [{"completion": "?", "solution": [{"shape": "LIP_FULL_BASIC", "color": "#B03050"}]}]
    code, _, err, found = score("--metrics", tmp_path / "m.json", task="makeup", rows=makeup)
    assert code == 0 and found["unreadable"] == 1 and found["lips_missing"] == 1
    (tmp_path / "m.json").unlink()
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom policies.vlm.tasks.shape_area import TASK\nTASK = replace(TASK, metrics=None)\n"
    )
    code, out, err, found = score("--metrics", tmp_path / "m.json", task=f"{tmp_path}/mine.py:TASK", rows=[{"completion": "x", "area": 1}])
    assert code == 2 and "reports nothing besides its reward" in err and out == "" and found is None


@pytest.mark.parametrize("name", ["rows.jsonl", "./deep/../rows.jsonl", "soft.jsonl", "hard.jsonl"])
def test_metrics_never_replace_the_rows(score, tmp_path, name):
    (tmp_path / "deep").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "soft.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "rows.jsonl")
    code, out, err, _ = score("--metrics", f"{tmp_path}/{name}")
    assert code == 2 and out == "" and "is the file of the rows" in err and len(err.splitlines()) == 1
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == len(ROWS) and (tmp_path / "soft.jsonl").is_symlink()


def test_metrics_that_cannot_be_written_are_refused_before_anything_is_printed(score, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/m.json", "file/deep/m.json", "x" * 300):
        code, out, err, _ = score("--metrics", tmp_path / name)
        assert code == 2 and out == "" and "cannot be written" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--au-list", "disfa"], "--metrics"),
        (["--metrics", "m.json", "--au-list", "dsfa"], "did you mean"),
        (["--metrics", "m.json", "--group-by", "country"], "line 1: has no 'country'"),
        (["--metrics", "m.json", "--judge-url", "http://x/v1"], "give both"),
        (["--metrics", "m.json", "--judge-url", "x", "--judge-model", "m"], "must be a URL"),
    ],
)
def test_mistakes_before_anything_is_printed(score, options, word):
    code, out, err, _ = score(*options)
    assert code == 2 and out == "" and word in err and len(err.splitlines()) == 1
