"""`score-completions` from the command line."""

import json
import subprocess
import sys

import pytest

from policies.vlm.main import score_completions


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_one_line_a_row(command, tmp_path):
    rows = [
        {"completion": "<reasoning>r</reasoning><answer>400.00</answer>", "area": 400},
        {"completion": "<answer>300.00</answer>", "area": 400},
    ]
    code, out, err = command(score_completions, "--task", "area", "--mode", "paper", write(tmp_path / "rows.jsonl", rows))
    assert code == 0 and err == ""
    first, second = (json.loads(line) for line in out.splitlines())
    assert first == {"reward": 4.0, "parts": {"correctness": 3.0, "two_decimals": 0.5, "structure": 0.5}, "parsed": 400.0}
    assert second["reward"] == 2.0


@pytest.mark.parametrize(
    ("task", "row", "reward"),
    [
        ("makeup", {"completion": "?", "solution": [{"shape": "lip", "color": "#B03050"}]}, 0.26),
        (
            "makeup-lips",
            {"completion": '<answer>{"color": "#DC3813"}</answer>', "solution": [{"shape": "lip", "color": "#D63027"}]},
            1.1906,  # .3 x form + colour score
        ),
        ("emotion", {"completion": "<think>AU4</think><answer>anger</answer>", "AUs": ["AU4"], "labels": ["anger"]}, 3.0),
    ],
)
def test_every_task(command, tmp_path, task, row, reward):
    code, out, _ = command(score_completions, write(tmp_path / "rows.jsonl", [row, ""]), "--task", task, "--mode", "paper")
    assert code == 0 and json.loads(out)["reward"] == pytest.approx(reward, abs=1e-4)


PREFERRED = "<think>smooth 4 2 blemish 5 3 texture 4 4 clarity 3 3 identity 5 5</think><answer>1</answer>"


def test_preferences(command, tmp_path):
    verdict = {"overall": "x", "skin_smoothing": "x", "texture": "tie", "clarity": "y"}
    texts = [PREFERRED, PREFERRED.replace("<answer>1", "<answer>2"), "Image1"]
    rows = write(tmp_path / "rows.jsonl", [{"completion": text, "verdict": verdict} for text in texts])
    totals = {"fixed": [2 + 2 / 3, 0.5 + 2 / 3, 0], "paper": [3, 1, 0]}
    for mode, wanted in totals.items():
        code, out, err = command(score_completions, "--task", "preference", "--mode", mode, rows)
        assert code == 0 and err == ""
        found = [json.loads(line) for line in out.splitlines()]
        assert [line["reward"] for line in found] == pytest.approx(wanted)
        assert found[0]["parsed"]["better"] == "x" and found[0]["parsed"]["scores"]["texture"] == [4, 4] and found[2]["parsed"] is None
    figures = tmp_path / "figures.json"
    assert command(score_completions, "--task", "preference", rows, "--metrics", figures)[0] == 0
    summary = json.loads(figures.read_text())
    assert summary["readable"] == pytest.approx(2 / 3) and summary["overall_accuracy"] == pytest.approx(1 / 3)
    assert "identity_accuracy" not in summary
    for bad, word in (({"overall": "a"}, "x, y or tie"), ({"beauty": "x"}, "beauty"), ("x", "verdict")):
        rows = write(tmp_path / "rows.jsonl", [{"completion": "x", "verdict": {"overall": "x"}}, {"completion": "x", "verdict": bad}])
        code, out, err = command(score_completions, "--task", "preference", rows)
        assert code == 2 and out == "" and "line 2" in err and word in err and len(err.splitlines()) == 1


def test_emotions_are_read_as_the_data_format_says(command, tmp_path):
    """Nouns for adjectives, and an empty list of units is no truth where the data set labels none."""
    row = {"completion": "<think></think><answer>anger</answer>", "dataset": "fer2013", "AUs": [], "labels": ["Angry"]}
    code, out, _ = command(score_completions, write(tmp_path / "rows.jsonl", [row, row | {"dataset": "DISFA"}]), "--task", "emotion")
    assert code == 0 and [json.loads(line)["reward"] for line in out.splitlines()] == [2, 3]


def test_a_users_own_task(command, tmp_path):
    (tmp_path / "mine.py").write_text("from policies.vlm.tasks.shape_area import area_task\nTASK = area_task('think')\n")
    row = {"completion": "<think>r</think><answer>400.00</answer>", "area": 400}
    code, out, _ = command(score_completions, "--task", f"{tmp_path}/mine.py:TASK", write(tmp_path / "rows.jsonl", [row]))
    assert code == 0 and json.loads(out)["reward"] == 4


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"completion": "x", "area": 1}, "{"], ["line 2", "not JSON"]),
        ([{"completion": "x", "area": 1}, {"area": 1}], ["line 2", "completion"]),
        ([{"completion": "x", "area": 1}, {"completion": "x", "area": -1}], ["line 2", "above 0"]),
        (["[1]"], ["line 1"]),
        ([], ["rows.jsonl", "holds no rows"]),
        (["[" * 100_000], ["line 1", "not JSON"]),
        (['{"completion": "x", "area": 1, "area": 2}'], ["line 1", "'area' is given twice"]),
        (['{"completion": "x", "area": NaN}'], ["line 1", "NaN"]),
        ([{"completion": "x", "area": 10**400}], ["line 1", "above 0"]),
    ],
)
def test_bad_rows_are_named_and_nothing_is_printed(command, tmp_path, rows, words):
    code, out, err = command(score_completions, write(tmp_path / "rows.jsonl", rows))
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert all(word in err for word in words), err


def test_mistakes(command, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"completion": "x", "area": 1}])
    for options, word in ((["--task", "aera"], "area"), (["--mode", "best"], "paper"), (["--task", f"{tmp_path}/none.py:TASK"], "none.py")):
        code, out, err = command(score_completions, rows, *options)
        assert code == 2 and out == "" and word in err
    assert command(score_completions, tmp_path / "none.jsonl")[0] == 2
    code, out, err = command(score_completions, rows, "--metrics", tmp_path)
    assert code == 2 and out == "" and "is a folder" in err
    rows = write(tmp_path / "rows.jsonl", [{"completion": "x", "AUs": ["AU4"]}])
    code, out, err = command(score_completions, rows, "--task", "emotion", "--metrics", tmp_path / "m.json", "--au-list", "\u00b2")
    assert code == 2 and out == "" and "--au-list" in err


def test_it_needs_no_torch(tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"completion": "x", "area": 1}])
    code = (
        "import atexit, sys\n"
        f"sys.argv = ['score-completions', {str(rows)!r}]\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from policies.vlm.main import score_completions\n"
        "score_completions()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
