"""Labels that are missing, unknown or numbered otherwise than their pictures become no labels."""

import csv
import json

import pytest
from PIL import Image
from written import lines

from policies.vlm.main import align_vlm
from policies.vlm.tasks.emotion import TASK
from policies.vlm.tasks.emotion_metrics import report
from portraitkit.errors import DataError
from portraitkit.vlm.rows import imitable, read_rows
from preference_data.main import make_preferences
from preference_data.sources import load_adapter
from reward_models.judge.preference_task import TASK as PREFERENCE

DISFA = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)


def run(monkeypatch, capsys, entry, *argv):
    monkeypatch.setattr("sys.argv", [entry.__name__.replace("_", "-"), *map(str, argv)])
    with pytest.raises(SystemExit) as stopped:
        entry()
    return stopped.value.code or 0, capsys.readouterr().err


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (90, 120, 150)).save(path)


def completion(*units, emotion="happiness"):
    return f"<think>{' '.join(f'(AU{unit})' for unit in units)}</think><answer>{emotion}</answer>"


# ---- unknown is not absent


@pytest.mark.parametrize("columns", ["all", "coded"])
def test_units_that_nobody_coded_are_neither_right_nor_wrong(tmp_path, monkeypatch, capsys, columns):
    """BP4D with AU10 present, AU6 and AU12 unknown: coded 9, or without a column."""
    codes = {unit: 9 if unit in (6, 12) else int(unit == 10) for unit in range(1, 100)}
    names = [unit for unit in codes if columns == "all" or codes[unit] != 9]
    (tmp_path / "bp4d/AUCoding/AU_OCC").mkdir(parents=True)
    with (tmp_path / "bp4d/AUCoding/AU_OCC/F001_T1.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[0, *names], [7, *(codes[name] for name in names)]])
    picture(tmp_path / "bp4d/F001/T1/0007.jpg")
    code, err = run(monkeypatch, capsys, make_preferences, "emotion", "bp4d", tmp_path / "bp4d", "--output-dir", tmp_path / "out")
    assert code == 0, err
    (row,) = lines(tmp_path / "out/train.jsonl")
    assert row["AUs"] == ["AU10"] and row["meta_info"]["unknown"] == ["AU6", "AU12"]
    truth = TASK.read_truth(row)
    answers = [completion(*units) for units in ((10,), (6, 10), (6, 10, 12), (6,), (4, 10))]
    earned = [TASK.score(answer, truth, "fixed").parts["action_units"] for answer in answers]
    assert earned == [1, 1, 1, 0, pytest.approx(2 / 3)], "AU4 is known to be absent, AU6 and AU12 are not"
    assert "AU6" not in TASK.perfect(truth)
    figures = report([completion(6, 10, 12)], [truth])["action_units"]["units"]
    assert [figures[unit]["false_alarms"] + figures[unit]["misses"] for unit in ("AU6", "AU12", "AU10")] == [0, 0, 0]


def test_units_that_a_data_set_does_not_code_are_unknown():
    truth = TASK.read_truth({"dataset": "DISFA", "AUs": ["AU12"], "labels": []})
    assert TASK.score(completion(7, 12), truth, "fixed").parts["action_units"] == 1, "DISFA codes no AU7"
    wrong = TASK.score(completion(4, 12), truth, "fixed").parts["action_units"]
    assert wrong is not None and wrong < 1
    assert TASK.read_truth({"AUs": [], "labels": ["anger"]}).unknown == frozenset()


@pytest.mark.parametrize("unknown", ["AU6", ["six"], [["AU6"]], ["AU12"]])
def test_unknown_units_that_make_no_sense_are_refused(unknown):
    with pytest.raises(DataError, match="meta_info.unknown"):
        TASK.read_truth({"AUs": ["AU12"], "labels": ["happiness"], "meta_info": {"unknown": unknown}})


# ---- missing labels do not become labels


@pytest.mark.parametrize("columns", [{"AUs": ["AU6", "AU12"], "labels": []}, {"AUs": None, "labels": ["anger"]}])
def test_what_a_row_does_not_label_is_not_imitated(tmp_path, columns):
    picture(tmp_path / "p.png")
    lines = [json.dumps({"image": "p.png", **columns, **more}) for more in ({}, {"target": "so"}, {"AUs": ["AU4"], "labels": ["anger"]})]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    rows = read_rows(tmp_path / "train.jsonl", TASK)
    assert [row.target for row in rows] == ["", "so", TASK.perfect(rows[2].truth)]
    assert imitable(rows) == rows[1:]
    with pytest.raises(DataError, match=r"line 1: labels only a part .* target"):
        imitable(rows[:1])


def test_sft_on_rows_without_an_emotion_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "p.png")
    for split, count in (("train", 8), ("test", 2)):
        (tmp_path / f"{split}.jsonl").write_text((json.dumps({"image": "p.png", "AUs": ["AU6"], "labels": []}) + "\n") * count)
    argv = ("--task", "emotion", "--stages", "sft", "--data", tmp_path, "--output-dir", tmp_path / "run")
    code, err = run(monkeypatch, capsys, align_vlm, *argv)
    assert code == 2 and "give rows a target, or leave sft out of --stages" in err and not (tmp_path / "run").exists()


def test_a_preference_that_nobody_gave_is_not_imitated():
    assert PREFERENCE.whole is not None
    assert not PREFERENCE.whole(PREFERENCE.read_truth({"verdict": {"overall": "x"}}))
    assert not PREFERENCE.whole(PREFERENCE.read_truth({"verdict": {"texture": "x"}}))


def test_a_text_without_units_labels_none(tmp_path):
    for kind, item in (("au", {"image": "a.jpg", "gpt4": "A calm face."}), ("emotion", {"image": "a.jpg", "label": "Fear"})):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / f"train/train_{kind}_anno.json").write_text(json.dumps([item]))
    from preference_data.sources import ReadOptions

    (record,) = load_adapter("faba").read(tmp_path, ReadOptions())
    assert record.units is None and record.emotion == "fear"


# ---- frames and labels meet, or are refused


def disfa(root, frames, pictures, short=()):
    for unit in DISFA:
        path = root / f"ActionUnit_Labels/SN001/SN001_au{unit}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{frame},{frame % 6 if unit == 12 else 0}\n" for frame in frames if unit != 1 or frame not in short))
    for name in pictures:
        picture(root / f"Images/SN001/{name}.jpg")
    return ("emotion", "disfa", root, "--output-dir", root / "out")


@pytest.mark.parametrize(
    ("frames", "pictures", "words"),
    [
        (range(5), range(1, 6), "frame 0; DISFA counts frames from 1"),
        (range(1, 6), range(5), "pictures 1 (0) have no label and labels 1 (5) no picture"),
        (range(1, 6), range(6), "both must count frames from 1"),
        (range(1, 6), range(2, 7), "pictures 1 (6) have no label and labels 1 (1) no picture"),
        (range(1, 6), range(101, 106), "pictures 5 (101, 102, 103, ..) have no label"),
        (range(1, 6), [*range(1, 6), "01"], "6 pictures for 5 frames"),
        (range(1, 6), [*range(1, 6), "frame_6"], "must be called by its frame's number"),
        ([1, 2, 2, 3], range(1, 4), "labels frame 2 a second time"),
    ],
)
def test_numbers_that_do_not_meet_are_refused(tmp_path, monkeypatch, capsys, frames, pictures, words):
    code, err = run(monkeypatch, capsys, make_preferences, *disfa(tmp_path, frames, pictures))
    assert code == 2 and words in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pictures", "short", "words"),
    [
        (range(1, 4), (), "2 (4, 5) labelled frames have no picture"),
        (range(1, 7), (), "1 pictures beside the labelled ones have no label"),
        (range(1, 6), (5,), "frames 1 (5) lack a label of some unit"),
    ],
)
def test_what_is_left_out_is_counted_and_nothing_shifts(tmp_path, monkeypatch, capsys, pictures, short, words):
    code, err = run(monkeypatch, capsys, make_preferences, *disfa(tmp_path, range(1, 6), pictures, short))
    assert code == 0 and words in err
    for row in lines(tmp_path / "out/train.jsonl"):
        frame = row["meta_info"]["frame"]
        assert row["image"].endswith(f"/{frame}.jpg") and row["meta_info"]["intensities"]["AU12"] == frame % 6


@pytest.mark.parametrize(
    ("first", "words"), [(0, "a picture 0 has no label and labels 1 (5) no picture; both must count from one number"), (1, "")]
)
def test_bp4d_whose_pictures_count_from_0_is_refused(tmp_path, monkeypatch, capsys, first, words):
    (tmp_path / "AU_OCC").mkdir()
    (tmp_path / "AU_OCC/F001_T1.csv").write_text("0,12\n" + "".join(f"{frame},{frame % 2}\n" for frame in range(1, 6)))
    for frame in range(first, first + 5):
        picture(tmp_path / f"F001/T1/{frame:04d}.jpg")
    code, err = run(monkeypatch, capsys, make_preferences, "emotion", "bp4d", tmp_path, "--output-dir", tmp_path / "out")
    assert code == (2 if words else 0) and words in err


def test_shares_that_are_no_numbers_are_no_emotion(tmp_path, monkeypatch, capsys):
    """RAF-ML's first column is surprise, which a row of NaN had become."""
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "RAFAU_label.txt").write_text("0001.jpg 1+2\n")
    (tmp_path / "EmoLabel/distribution.txt").write_text("1.jpg" + " nan" * 6 + "\n")
    picture(tmp_path / "aligned/0001_aligned.jpg")
    code, err = run(monkeypatch, capsys, make_preferences, "emotion", "raf-au", tmp_path, "--output-dir", tmp_path / "out")
    assert code == 2 and "line 1: surprise 'nan' must be a finite number" in err


@pytest.mark.parametrize("box", ["-40 -9 9 -20", "-10 -20 -5 9"])
def test_a_box_before_the_picture_is_no_face(tmp_path, monkeypatch, capsys, box):
    """Its end counted from the picture's other side, so that nearly all of the picture was the face."""
    picture(tmp_path / "origin/a.jpg")
    (tmp_path / "label.lst").write_text(f"a.jpg 0 {box} 60 3\n")
    code, err = run(monkeypatch, capsys, make_preferences, "emotion", "expw", tmp_path, "--output-dir", tmp_path / "out")
    assert code == 2 and "the face's box lies outside the picture" in err


def test_folders_that_are_no_emotion_are_named(tmp_path, monkeypatch, capsys):
    for name in ("angry", "contempt", "Happy"):
        picture(tmp_path / f"train/{name}/a.jpg")
    code, err = run(monkeypatch, capsys, make_preferences, "emotion", "fer2013", tmp_path, "--output-dir", tmp_path / "out")
    assert code == 0 and "folders Happy, contempt are no emotion of FER2013" in err
    assert [row["labels"] for row in lines(tmp_path / "out/train.jsonl")] == [["anger"]]
