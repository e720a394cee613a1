"""`make-preferences emotion`: each data set from a small folder of its original layout, made here, to rows that align-vlm reads."""

import csv
import json

import av
import numpy as np
import pytest
from PIL import Image
from written import lines

from policies.vlm.tasks.emotion import TASK
from portraitkit.errors import ConfigError, DataError
from portraitkit.pictures.images import read_image
from portraitkit.vlm.rows import open_rows, read_rows
from preference_data.main import make_preferences
from preference_data.sources import BUILT_IN, load_adapter

COUNTS = {"train": 0, "validation": 1, "held_out": 0}


def picture(path, colour=(90, 120, 150), size=(40, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")


def disfa(root, *, stills=False):
    levels = {1: (0, 3, 5), 4: (2, 1, 0), 12: (0, 0, 2)}
    for subject in ("SN001", "SN002", "SN003"):
        for unit in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26):
            values = levels.get(unit, (0, 0, 0))
            text(root / f"ActionUnit_Labels/{subject}/{subject}_au{unit}.txt", [f"{frame},{v}" for frame, v in enumerate(values, 1)])
        if stills:
            for frame in (1, 2, 3):
                picture(root / f"Images/{subject}/{frame}.jpg")
        else:
            video(root / f"Videos_LeftCamera/LeftVideo{subject}_comp.avi")


def video(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=20)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuvj420p"
        for level in (20, 120, 220):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def bp4d(root):
    for name in ("F001_T1", "F004_T1"):
        rows = [[frame, *(0 if unit not in (4, 38) else 1 for unit in range(1, 100))] for frame in (7, 8)]
        rows[0][27] = 9
        (root / "AUCoding/AU_OCC").mkdir(parents=True, exist_ok=True)
        with (root / f"AUCoding/AU_OCC/{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([list(range(100)), *rows])
        for frame in (7, 8):
            picture(root / "Sequences(2D+3D)" / name.replace("_", "/") / f"{frame:04d}.jpg")


def raf_au(root):
    text(root / "RAFAU_label.txt", ["0001.jpg 1+L2+39", "0002.jpg null ", *(f"{n:04d}.jpg 12+25" for n in range(3, 11))])
    text(root / "EmoLabel/distribution.txt", ["0001.jpg .6 .1 .1 .1 .1 0", "0002.jpg .5 .5 0 0 0 0"])
    for number in range(1, 11):
        picture(root / f"aligned/{number:04d}_aligned.jpg")


def faba(root):
    for part, count in (("train", 3), ("eval", 1)):
        images = [f"FABAInstruct/{part}/images/{number}.jpg" for number in range(count)]
        for name in images:
            picture(root.parent / name if root.name == "FABAInstruct" else root / name.removeprefix("FABAInstruct/"))
        units = [{"image": name, "label": "1, 4, 26", "gpt4": "AU1 and AU4 show."} for name in [*images, images[0]]]  # one twice
        emotions = [{"image": name, "label": label, "gpt4": "Sad."} for name, label in zip(images, ("Sadness", "1", "Fear"), strict=False)]
        text(root / part / f"{part}_au_anno.json", [json.dumps(units)])
        text(root / part / f"{part}_emotion_anno.json", [json.dumps(emotions)])


def fer2013(root):
    pixels = " ".join(["0"] * 48 + ["255"] * (47 * 48))
    usages = ("Training", "Training", "PublicTest", "PrivateTest")
    text(
        root / "fer2013.csv",
        ["emotion,pixels,Usage", *(f"{code},{pixels},{usage}" for code, usage in zip((0, 3, 4, 6), usages, strict=True))],
    )


def affectnet(root):
    for part, codes in (("train_set", (0, 6, 8)), ("val_set", (7,))):
        (root / part / "annotations").mkdir(parents=True)
        for number, code in enumerate(codes):
            np.save(root / part / f"annotations/{number}_exp.npy", np.array(str(code)))
            np.save(root / part / f"annotations/{number}_val.npy", np.array("-0.25"))
            picture(root / part / f"images/{number}.jpg")


def raf_db(root):
    names = {"train_00001": 1, "train_00002": 4, "test_0001": 7}
    text(root / "basic/EmoLabel/list_patition_label.txt", [f"{name}.jpg {code}" for name, code in names.items()])
    for name in names:
        picture(root / f"basic/Image/aligned/{name}_aligned.jpg")


def expw(root):
    lines = [f"photo{n}.jpg {face} 10 {20 + 40 * face} {40 + 40 * face} 30 67.5 {n % 7}" for n in range(4) for face in (0, 1)]
    text(root / "label/label.lst", lines)
    for number in range(4):
        picture(root / f"image/origin/photo{number}.jpg", size=(120, 60))


def published(root):
    row = {
        "id": "a",
        "dataset": "FER2013",
        "image": "x/1.jpg",
        "question": "?",
        "AUs": [],
        "labels": ["Angry"],
        "description": "d",
        "meta_info": {},
    }
    text(root / "train.jsonl", [json.dumps(row), json.dumps(row | {"id": "b", "dataset": "FABA", "AUs": ["AU12", "AU6"], "labels": []})])
    text(root / "test.jsonl", [json.dumps(row | {"id": "c", "labels": ["happiness"]})])
    picture(root / "x/1.jpg")


MAKERS = {
    "disfa": disfa,
    "bp4d": bp4d,
    "raf-au": raf_au,
    "faba": faba,
    "fer2013": fer2013,
    "affectnet": affectnet,
    "raf-db": raf_db,
    "expw": expw,
    "jsonl": published,
}
EXPECTED = {
    "disfa": {"train": 6, "test": 3},
    "bp4d": {"train": 2, "test": 2},
    "raf-au": {"train": 9, "test": 1},
    "faba": {"train": 3, "test": 1},
    "fer2013": {"train": 2, "validation": 1, "test": 1},
    "affectnet": {"train": 2, "test": 1},
    "raf-db": {"train": 2, "test": 1},
    "expw": {"train": 6, "test": 2},
    "jsonl": {"train": 2, "test": 1},
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_data_set_from_its_own_layout(command, tmp_path, name):
    MAKERS[name](tmp_path / "in")
    out = tmp_path / "out"
    options = ["--test-share", "0.25"] if name == "expw" else []
    code, _, err = command(make_preferences, "emotion", name, tmp_path / "in", "--output-dir", out, *options)
    assert code == 0, err
    found = {split: lines(out / f"{split}.jsonl") for split in EXPECTED[name]}
    assert {split: len(rows) for split, rows in found.items()} == EXPECTED[name]
    assert (out / "validation.jsonl").exists() == ("validation" in EXPECTED[name])
    for split in EXPECTED[name]:
        for row in read_rows(out / f"{split}.jsonl", TASK):
            assert row.truth.units is not None or row.truth.emotion is not None
            assert row.images()[0].size[0] >= 20
    ids = [row["id"] for rows in found.values() for row in rows]
    assert len(set(ids)) == len(ids)
    subjects = [{row["meta_info"].get("subject", row["id"]) for row in rows} for rows in found.values()]
    assert not set.intersection(*subjects)


def build(command, tmp_path, name, *options, maker=None):
    (maker or MAKERS[name])(tmp_path / "in")
    return command(make_preferences, "emotion", name, tmp_path / "in", "--output-dir", tmp_path / "out", *options)


def test_disfa_reads_frames_intensities_and_the_usual_fold(command, tmp_path):
    assert build(command, tmp_path, "disfa")[0] == 0
    train, test = lines(tmp_path / "out/train.jsonl"), lines(tmp_path / "out/test.jsonl")
    assert [row["AUs"] for row in train[:3]] == [["AU4"], ["AU1"], ["AU1", "AU12"]] and train[0]["labels"] == []
    assert {row["meta_info"]["subject"] for row in test} == {"SN003"}
    levels = [float(read_image(tmp_path / "out" / row["image"]).pixels.mean()) * 255 for row in train[:3]]
    assert levels == pytest.approx([20, 120, 220], abs=4)  # frame n of the video carries the labels of line n


def test_disfa_every_second_frame_and_any_intensity(command, tmp_path):
    code, _, _ = build(command, tmp_path, "disfa", "--every", "2", "--min-intensity", "1", maker=lambda root: disfa(root, stills=True))
    rows = lines(tmp_path / "out/train.jsonl")
    assert code == 0 and [row["meta_info"]["frame"] for row in rows] == [1, 3, 1, 3]
    assert (tmp_path / "out/images").is_symlink() and rows[0]["image"] == "images/Images/SN001/1.jpg"


def test_bp4d_keeps_what_the_prompt_does_not_define_apart(command, tmp_path):
    code, _, err = build(command, tmp_path, "bp4d")
    rows = lines(tmp_path / "out/train.jsonl")
    assert code == 0 and "AU38" in err
    assert rows[0]["AUs"] == ["AU4"] and rows[0]["meta_info"]["other_AUs"] == ["AU38"] and rows[0]["meta_info"]["unknown"] == ["AU27"]
    assert {row["meta_info"]["subject"] for row in lines(tmp_path / "out/test.jsonl")} == {"F004"}


def test_raf_au_sides_and_emotions_of_raf_ml(command, tmp_path):
    assert build(command, tmp_path, "raf-au", "--test-share", "0")[0] == 0
    first, second, third = lines(tmp_path / "out/train.jsonl")[:3]
    assert first["AUs"] == ["AU1", "AU2"] and first["labels"] == ["surprise"] and first["meta_info"]["one_sided"] == ["L2"]
    assert second["AUs"] == [] and second["labels"] == []  # a tie has no emotion
    assert third["AUs"] == ["AU12", "AU25"]


def test_faba_joins_units_emotions_and_descriptions(command, tmp_path):
    assert build(command, tmp_path, "faba")[0] == 0
    rows = lines(tmp_path / "out/train.jsonl")
    assert [row["labels"] for row in rows] == [["sadness"], ["sadness"], ["fear"]]
    assert rows[0]["AUs"] == ["AU1", "AU4", "AU26"] and rows[0]["description"] == "AU1 and AU4 show. Sad."


def test_fer2013_pictures_are_written_as_they_are(command, tmp_path):
    assert build(command, tmp_path, "fer2013")[0] == 0
    row = lines(tmp_path / "out/train.jsonl")[0]
    pixels = read_image(tmp_path / "out" / row["image"]).pixels
    assert row["AUs"] is None and row["labels"] == ["anger"]
    assert pixels.shape == (3, 48, 48) and float(pixels[:, 0].max()) == 0 and float(pixels[:, 1:].min()) == 1
    splits = open_rows(TASK, str(tmp_path / "out"), COUNTS, 0)
    assert [splits[name][0].truth.emotion for name in ("train", "validation", "held_out")] == ["anger", "sadness", "neutral"]


def test_fer2013_in_folders(command, tmp_path):
    def folders(root):
        picture(root / "train/happy/1.jpg")
        picture(root / "test/sad/1.jpg")

    assert build(command, tmp_path, "fer2013", "--copy-images", maker=folders)[0] == 0
    assert lines(tmp_path / "out/train.jsonl")[0]["labels"] == ["happiness"]
    assert not (tmp_path / "out/images").is_symlink() and (tmp_path / "out/images/test/sad/1.jpg").is_file()


def test_affectnet_sets_aside_what_is_no_emotion(command, tmp_path):
    assert build(command, tmp_path, "affectnet")[0] == 0
    assert lines(tmp_path / "out/quarantine.jsonl") == [{"id": "train_set-2", "reason": "no emotion (code 8)"}]
    assert lines(tmp_path / "out/test.jsonl")[0]["labels"] == ["contempt"]
    assert lines(tmp_path / "out/test.jsonl")[0]["meta_info"] == {"valence": -0.25}


def test_affectnet_first_delivery(command, tmp_path):
    def tables(root):
        for name, table in (("a/1.jpg", "training.csv"), ("b/2.jpg", "validation.csv")):
            text(root / table, ["subDirectory_filePath,face_x,expression,valence,arousal", f"{name},1,1,0.5,-0.1"])
            picture(root / "Manually_Annotated_Images" / name)

    assert build(command, tmp_path, "affectnet", maker=tables)[0] == 0
    assert lines(tmp_path / "out/train.jsonl")[0]["id"] == "affectnet-a-1"


def test_expw_cuts_each_face_out_and_keeps_photos_together(command, tmp_path):
    assert build(command, tmp_path, "expw", "--test-share", "0.5")[0] == 0
    train, test = lines(tmp_path / "out/train.jsonl"), lines(tmp_path / "out/test.jsonl")
    assert {row["meta_info"]["photo"] for row in train}.isdisjoint(row["meta_info"]["photo"] for row in test)
    assert read_image(tmp_path / "out" / train[0]["image"]).pixels.shape == (3, 30, 30)


def test_published_rows_are_normalised(command, tmp_path):
    assert build(command, tmp_path, "jsonl")[0] == 0
    first, second = lines(tmp_path / "out/train.jsonl")
    assert (first["labels"], first["AUs"], first["dataset"], first["id"], first["question"]) == (["anger"], None, "FER2013", "a", "?")
    assert second["AUs"] == ["AU6", "AU12"] and second["labels"] == []


def test_missing_and_broken_pictures_are_set_aside(command, tmp_path):
    raf_db(tmp_path / "in")
    (tmp_path / "in/basic/Image/aligned/train_00002_aligned.jpg").unlink()
    (tmp_path / "in/basic/Image/aligned/train_00001_aligned.jpg").write_bytes(b"\xff\xd8 no picture")
    code, _, err = command(make_preferences, "emotion", "raf-db", tmp_path / "in", "--output-dir", tmp_path / "out", "--check-images")
    assert code == 0 and "2 rows set aside" in err
    assert [row["id"] for row in lines(tmp_path / "out/quarantine.jsonl")] == ["train_00001", "train_00002"]


def test_too_many_missing_pictures_stop_the_command(command, tmp_path):
    text(tmp_path / "in/EmoLabel/list_patition_label.txt", [f"train_{n:05d}.jpg 1" for n in range(120)])
    code, _, err = command(make_preferences, "emotion", "raf-db", tmp_path / "in", "--output-dir", tmp_path / "out")
    assert code == 2 and "100 of 100 pictures" in err and not (tmp_path / "out/train.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "file", "lines", "words"),
    [
        ("raf-db", "EmoLabel/list_patition_label.txt", ["train_00001.jpg 9"], ["line 1", "'9'"]),
        ("raf-db", "EmoLabel/list_patition_label.txt", ["train_00001.jpg 1", "train_00002.jpg"], ["line 2", "1 fields"]),
        ("raf-au", "RAFAU_label.txt", ["0001.jpg 1+x"], ["line 1", "units such as"]),
        ("fer2013", "fer2013.csv", ["emotion,pixels,Usage", "0,1 2 3,Training"], ["line 2", "2304"]),
        ("fer2013", "fer2013.csv", ["emotion,pixels"], ["Usage"]),
        ("fer2013", "fer2013.csv", ["emotion,pixels,Usage", "0,1 2 3"], ["line 2", "2 fields", "names 3"]),
        ("fer2013", "fer2013.csv", ["emotion,pixels,Usage", "0,1 2 3,\udce9"], ["line 2", "not UTF-8 at byte 9"]),
        ("fer2013", "fer2013.csv", ["emotion,pixels,Usage", f"0,{'1' * 140_000},Training"], ["line 2", "no CSV"]),
        ("fer2013", "fer2013.csv", [], ["has no column emotion"]),
        ("affectnet", "training.csv", ["subDirectory_filePath,expression,valence", "a/1.jpg"], ["line 2", "1 fields"]),
        ("affectnet", "training.csv", ["subDirectory_filePath,expression,valence", "a/\udce9.jpg,1,0"], ["line 2", "not UTF-8"]),
        ("affectnet", "training.csv", ["subDirectory_filePath,expression,valence", ",1,0"], ["line 2", "no picture"]),
        ("affectnet", "training.csv", ["subDirectory_filePath,expression,valence", "a/1.jpg,1,nan"], ["line 2", "finite"]),
        ("affectnet", "training.csv", ["subDirectory_filePath,expression,valence", "a/1.jpg,1,x"], ["line 2", "valence"]),
        ("affectnet", "train_set/annotations/0_exp.npy", [], ["0_exp.npy", "one number"]),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", ["0,1,2", "7,0,1", "8,0"], ["line 3", "2 fields"]),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", ["0,1,2", "7,0,\udce9"], ["line 2", "not UTF-8"]),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", ["0,1,x", "7,0,1"], ["line 1", "the frame and the units"]),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", ["0,1,1", "7,0,1"], ["line 1", "twice"]),
        ("bp4d", "AUCoding/AU_OCC/F001_T1.csv", ["0,1,2", "7,0,3"], ["line 2", "'3'"]),
        (
            "faba",
            "train/train_au_anno.json",
            ['[{"image": "a.jpg", "label": "1"}, {"image": "a.jpg", "label": "2"}]'],
            ["item 2", "item 1"],
        ),
        ("expw", "label.lst", ["a.jpg 0 30 20 40 10 60 3"], ["line 1", "top left right bottom"]),
        ("disfa", "readme.txt", ["x"], ["ActionUnit_Labels"]),
        ("jsonl", "train.jsonl", ['{"id": "a", "dataset": "d", "image": "../x.jpg", "AUs": [], "labels": []}'], ["line 1", "inside"]),
    ],
)
def test_folders_that_break_the_layout(command, tmp_path, name, file, lines, words):
    for place in ("image/origin", "aligned", "Manually_Annotated_Images", "F001/T1"):
        (tmp_path / "in" / place).mkdir(parents=True)
    text(tmp_path / "in" / file, lines)
    code, _, err = command(make_preferences, "emotion", name, tmp_path / "in", "--output-dir", tmp_path / "out")
    assert code == 2 and len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert not (tmp_path / "out/train.jsonl").exists()


def test_the_same_command_again_and_with_other_options(command, tmp_path):
    assert build(command, tmp_path, "fer2013")[0] == 0
    before = (tmp_path / "out/train.jsonl").read_bytes()
    again = ("emotion", "fer2013", tmp_path / "in", "--output-dir", tmp_path / "out")
    assert command(make_preferences, *again)[0] == 0 and (tmp_path / "out/train.jsonl").read_bytes() == before
    code, _, err = command(make_preferences, *again, "--count", "1")
    assert code == 2 and "count 0 -> 1" in err
    assert command(make_preferences, *again, "--count", "1", "--overwrite")[0] == 0
    assert len(lines(tmp_path / "out/train.jsonl")) == 1


def test_unknown_data_sets_and_a_users_own(command, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'disfa'"):
        load_adapter("dissfa")
    (tmp_path / "mine.py").write_text(
        "from preference_data.sources import Adapter, Record\n"
        "def read(folder, options):\n"
        "    yield Record('1', folder / '1.jpg', emotion='Happy')\n"
        "ADAPTER = Adapter('mine', '1.jpg', read)\n"
    )
    picture(tmp_path / "in/1.jpg")
    code, _, err = command(make_preferences, "emotion", f"{tmp_path}/mine.py:ADAPTER", tmp_path / "in", "--output-dir", tmp_path / "out")
    assert code == 0 and "test.jsonl is empty" in err
    assert lines(tmp_path / "out/train.jsonl")[0]["labels"] == ["happiness"]
    with pytest.raises(DataError):
        read_rows(tmp_path / "out/test.jsonl", TASK)
