"""`synthesize-emotion`: with a scripted endpoint and with a tiny local model; acceptance, retries, rejects, resuming."""

import json
import re
import subprocess
from types import SimpleNamespace

import pytest
from PIL import Image
from scripted_endpoint import ScriptedEndpoint
from written import lines

from policies.vlm.align.align_config import AlignVlmConfig
from policies.vlm.config import SynthesizeConfig
from policies.vlm.main import synthesize_emotion
from policies.vlm.synthesize import _fine_tune, find_errors, write_prompt
from policies.vlm.tasks.emotion import TASK
from portraitkit.config import load_config
from portraitkit.files.jsonl import write_lines
from portraitkit.vlm.rows import open_rows
from portraitkit.vlm.task import ASKED
from preference_data.emotion_rows import EmotionRow, read_emotion_rows

pytestmark = pytest.mark.usefixtures("quick_endpoint")
SAD = EmotionRow("sad", "FABA", "1.png", AUs=("AU4", "AU15"), labels=("sadness",), meta_info={"age": 3})
GOOD = "<think>The brows come down (AU4) and the lip corners too (AU15).</think><answer>sadness</answer>"


@pytest.fixture
def folder(tmp_path):
    rows = [EmotionRow(f"r{n}", "FABA", "faces/1.png", AUs=("AU4", "AU15"), labels=("sadness",)) for n in range(6)]
    rows += [
        EmotionRow("no-emotion", "DISFA", "faces/1.png", AUs=("AU4",)),
        EmotionRow("no-units", "ExpW", "faces/1.png", labels=("fear",)),
    ]
    (tmp_path / "in/faces").mkdir(parents=True)
    Image.new("RGB", (32, 32), (120, 90, 80)).save(tmp_path / "in/faces/1.png")
    write_lines(tmp_path / "in/train.jsonl", [row.to_dict() for row in rows])
    write_lines(tmp_path / "in/test.jsonl", [EmotionRow("t", "FABA", "faces/1.png", AUs=("AU12",), labels=("happiness",)).to_dict()])
    return tmp_path / "in"


def asked(body):
    return body["messages"][0]["content"][-1]["text"]


def run(command, server, folder, *options):
    return command(
        synthesize_emotion, folder, "--endpoint", server.url, "--endpoint-model", "m", "--output-dir", folder.parent / "out", *options
    )


@pytest.mark.parametrize(
    ("completion", "errors"),
    [
        (GOOD, []),
        (GOOD.replace("sadness<", " Sadness <"), []),
        (GOOD + " ok", ["must be <think>"]),
        (GOOD.replace("(AU15)", ""), ["AU15 shows, but is not named"]),
        (GOOD.replace("(AU15)", "(AU15) (AU12)"), ["AU12 is named, but does not show"]),
        (GOOD.replace("sadness<", "fear<"), ["'fear', but must be sadness"]),
        ("<think></think><answer>fear</answer>", ["AU4 shows", "AU15 shows", "'fear'", "is empty"]),
    ],
)
def test_acceptance_is_exact(completion, errors):
    found = find_errors(SAD, completion)
    assert len(found) == len(errors) and all(words in error for words, error in zip(errors, found, strict=True)), found


JOY = EmotionRow("joy", "FABA", "1.png", AUs=("AU6",), labels=("happiness",))


@pytest.mark.parametrize(
    ("think", "found"),
    [
        ("(AU6+12) shows", "'(AU6+12)'"),
        ("(AU6) and action unit 12 (AU12L)", "'12'"),
        ("(AU6) and (AU12L)", "'(AU12L)'"),
        ("(AU6), (AU100)", "'(AU100)'"),
        ("AU6/25", "'AU6/25'"),
        ("(AU6) and AU-12", "'AU-12'"),
        ("(AU6) at 50 %", "'50'"),
        ("(AU6) and AU\u00b2", "'AU\u00b2'"),
        ("(AU6) and action unit twelve", "'action unit twelve'"),
        ("(AU6) and AUs: fourteen", "'AUs: fourteen'"),
        ("(AU6) with the Lip corner puller", "'lip corner puller' is AU12"),
        ("(AU6) (AU99)", "AU99 is named, but does not show"),
    ],
)
def test_what_the_reward_does_not_read_is_found(think, found):
    completion = f"<think>{think}</think><answer>happiness</answer>"
    assert any(found in error for error in find_errors(JOY, completion)), find_errors(JOY, completion)
    assert find_errors(JOY, "<think>The cheek raiser, (AU6) or AU 6, au06 again.</think><answer>happiness</answer>") == []


def test_units_that_are_not_written_one_by_one():
    row = EmotionRow("a", "FABA", "1.png", AUs=("AU6", "AU12"), labels=("happiness",))
    errors = find_errors(row, "<think>AU6+12</think><answer>happiness</answer>")
    assert errors[0] == "AU12 shows, but is not named" and "'AU6+12'" in errors[1]
    free = EmotionRow("a", "ExpW", "1.png", labels=("happiness",))
    assert "by itself" in write_prompt(free) and find_errors(free, "<think>(AU12)</think><answer>happiness</answer>") == []
    errors = find_errors(free, "<think>(AU33) and (AU6+12)</think><answer>happiness</answer>")
    assert errors[0] == "AU33 is not in the list" and "'(AU6+12)'" in errors[1] and len(errors) == 2


def test_the_prompt_holds_the_truth_and_the_errors():
    first = write_prompt(SAD)
    assert first.startswith(TASK.prompt) and "AU4 brow lowerer, AU15 lip corner depressor" in first and "the emotion is sadness" in first
    again = write_prompt(SAD, answer="<think>x", errors=["AU4 shows, but is not named"])
    assert again.startswith(first) and "<think>x" in again and "- AU4 shows, but is not named" in again
    assert "Name no action unit and no number." in write_prompt(EmotionRow("a", "b", "c", AUs=(), labels=("neutral",)))


def test_accepted_rejected_and_unverifiable_rows(command, folder):
    answers = iter([GOOD, GOOD.replace("(AU4)", ""), GOOD, *["nonsense"] * 6, GOOD, GOOD, GOOD])
    with ScriptedEndpoint(lambda body: next(answers)) as server:
        code, _, err = run(command, server, folder, "--workers", "1", "--batch-size", "1")
    out = folder.parent / "out"
    assert code == 0 and "5 of 8 rows accepted, 3 rejected" in err
    accepted, rejected = lines(out / "train.jsonl"), lines(out / "rejected.jsonl")
    assert [row["id"] for row in accepted] == ["r0", "r1", "r3", "r4", "r5"] and all(row["target"] == GOOD for row in accepted)
    assert "AU4 shows, but is not named" in asked(server.requests[2]) and "AU4 shows, but" not in asked(server.requests[1])
    assert [row["id"] for row in rejected] == ["r2", "no-emotion", "no-units"]
    assert len(rejected[0]["attempts"]) == 6 and "must be <think>" in rejected[0]["reasons"][0]
    assert "labels no emotion" in rejected[1]["reasons"][0] and rejected[1]["attempts"] == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accepted_by_attempt"] == {"1": 4, "2": 1} and summary["open"] == 0
    splits = open_rows(TASK, str(out), {"train": 0, "validation": 1, "held_out": 0}, 0)
    assert splits["train"][0].target == GOOD and splits["held_out"][0].truth.emotion == "happiness"
    assert splits["train"][0].images()[0].size == (32, 32)
    assert len(read_emotion_rows(out / "train.jsonl")) == 5


def test_rows_that_label_half_are_taken_if_asked(command, folder):
    def script(body):
        facts = re.search(r"What is known about this face: (.*?)\. Describe", asked(body)).group(1)
        units = " ".join(f"({unit})" for unit in re.findall(r"AU\d+", facts)) or "(AU1)"
        emotion = re.search(r"the emotion is (\w+)", facts)
        return f"<think>See {units}.</think><answer>{emotion[1] if emotion else 'anger'}</answer>"

    with ScriptedEndpoint(script) as server:
        assert run(command, server, folder, "--need", "any")[0] == 0
    assert len(lines(folder.parent / "out/train.jsonl")) == 8


def test_a_failing_endpoint_rejects_nothing_and_the_command_goes_on(command, folder):
    answers = iter([GOOD, GOOD])
    with ScriptedEndpoint(lambda body: next(answers, (500, "down"))) as server:
        options = ("--workers", "1", "--batch-size", "1", "--request-retries", "1", "--max-failures", "2")
        code, _, err = run(command, server, folder, *options)
        assert code == 2 and "HTTP 500" in err.splitlines()[-1] and "2 rows are done" in err
    assert not (folder.parent / "out/train.jsonl").exists()
    with ScriptedEndpoint(lambda body: GOOD) as server:
        code, _, err = command(
            synthesize_emotion, folder, "--endpoint", server.url, "--endpoint-model", "m", "--output-dir", folder.parent / "out"
        )
        assert code == 2 and "endpoint" in err  # another URL is another option
        (config := folder.parent / "out/config.json").write_text(re.sub(r"http://[^\"]*", server.url, config.read_text()))
        code, _, err = run(command, server, folder)
        assert code == 0 and "2 rows are done already" in err and len(server.requests) == 4
    assert len(lines(folder.parent / "out/train.jsonl")) == 6


def test_nothing_accepted_is_said(command, folder):
    with ScriptedEndpoint(lambda body: "no") as server:
        code, _, err = run(command, server, folder, "--retries", "0", "--count", "2")
    assert code == 2 and "no answer was accepted" in err and len(lines(folder.parent / "out/rejected.jsonl")) == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "give --model FOLDER or a hub id, or --endpoint"),
        (["--model", "embedded"], "short answers"),
        (["--endpoint", "http://x/v1"], "endpoint-model"),
        (["--retries", "-1"], "0 or more"),
        (["--rounds", "2", "--endpoint", "http://x/v1", "--endpoint-model", "m"], "cannot be fine-tuned"),
        (["--model", "./nowhere"], "no such folder"),
        (["--endpoint", "http://x/v1", "--endpoint-model", "m", "--key-env", "NOT_SET_HERE"], "NOT_SET_HERE"),
    ],
)
def test_mistakes(command, folder, options, word):
    code, _, err = command(synthesize_emotion, folder, "--output-dir", folder.parent / "out", *options)
    assert code == 2 and word in err and len(err.splitlines()) == 1 and not (folder.parent / "out").exists()
    code, _, err = command(synthesize_emotion, folder / "none.jsonl", "--model", folder)
    assert code == 2 and "no such file" in err


@pytest.fixture
def tiny(folder):
    from tiny_vlm import THINK_ANSWER, write_tiny_vlm

    return write_tiny_vlm(folder.parent / "tiny", f"{TASK.prompt} {GOOD}", THINK_ANSWER)


def test_a_local_model_is_asked_row_by_row(command, folder, tiny):
    """A tiny model with random weights: what it writes is rejected for what it is, through the real generation."""
    options = ("--model", tiny, "--output-dir", folder.parent / "out", "--retries", "1", "--max-tokens", "4", "--count", "2")
    code, _, err = command(synthesize_emotion, folder, *options)
    assert code == 2 and "no answer was accepted" in err
    rejected = lines(folder.parent / "out/rejected.jsonl")
    assert [len(row["attempts"]) for row in rejected] == [2, 2]


def test_what_was_trained_from_the_embedded_model_is_refused_at_once(command, folder, tiny):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**config, ASKED: "brief"}))
    code, _, err = command(synthesize_emotion, folder, "--model", tiny, "--output-dir", folder.parent / "out")
    assert code == 2 and "short answers" in err and len(err.splitlines()) == 1 and not (folder.parent / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "left"), [(0, "config.json"), (2, "adapter_config.json")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_second_round_fine_tunes_on_what_was_accepted(command, folder, tiny, rank, left):
    tests = [EmotionRow(f"t{n}", "FABA", "faces/1.png", AUs=("AU12",), labels=("happiness",)) for n in range(2)]
    write_lines(folder / "test.jsonl", [row.to_dict() for row in tests])
    out = folder.parent / "out"
    options = ("--model", tiny, "--output-dir", out, "--retries", "0", "--max-tokens", "4", "--sft-steps", "1", "--sft-batch", "2")
    options += ("--rank", str(rank))
    assert command(synthesize_emotion, folder, *options)[0] == 2
    records = lines(out / "journal.jsonl")
    for record in records[:5]:  # as if a better model had written them
        record |= {"accepted": True, "attempts": [{"text": GOOD, "errors": []}]}
    write_lines(out / "journal.jsonl", records)
    code, _, err = command(synthesize_emotion, folder, *options, "--rounds", "2")
    assert code == 0 and "5 of 8 rows accepted" in err, err
    assert (out / "sft-1/model" / left).is_file()
    last = {record["id"]: record for record in lines(out / "journal.jsonl")}
    assert last["r5"]["round"] == 2 and last["r0"]["round"] == 1 and last["no-units"]["round"] == 1


def test_deepspeed_fine_tunes_by_torchrun_from_the_last_rounds_lora(folder, tiny, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: started.append(words) or SimpleNamespace(returncode=0))
    config = SynthesizeConfig(folder, model=str(tiny), rounds=3, rank=2, gradient_checkpointing=True, deepspeed="zero2")
    assert _fine_tune(config, folder, "last/model", 2) == (0, str(folder / "sft-2" / "model"))
    words = started[0]
    assert words[1:4] == ["-m", "torch.distributed.run", "--standalone"] and "policies.vlm.main" in words
    options = load_config(AlignVlmConfig, words[words.index("policies.vlm.main") + 1 :], prog="align-vlm")
    assert (options.model, options.adapter, options.stages, options.overwrite) == (str(tiny), "last/model", ("sft",), True)
    assert (options.rank, options.gradient_checkpointing, options.deepspeed, options.train_rows) == (2, True, "zero2", 0)
