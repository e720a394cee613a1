"""A folder of photos to train on is split by person: nobody is in two splits, and each evaluation photo is there once."""

import json

import pytest
import torch
from rich.console import Console

from policies.retoucher.photos import FolderSource, open_photos, read_photos
from portraitkit.errors import DataError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image
from preference_data.people import photos
from preference_data.people.photos import PhotoFace
from preference_data.schema import SPLITS


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder):
    return open_photos(read_photos(str(folder), "none", Console(quiet=True)), 128)


def test_nobody_is_in_two_splits_and_photos_and_people_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "find_face", lambda pixels, path: PhotoFace((8, 8), torch.zeros(468, 3), torch.zeros(128)))
    rows = [{"file_name": f"{number}.png", "identity": f"person {number // 4}"} for number in range(40)]
    for row in rows:
        write_image(tmp_path / row["file_name"], torch.zeros(3, 8, 8))
    for number, row in enumerate(rows):  # every face is the same to the net: each person says where it belongs
        row["split"] = ("train", "validation", "held_out", *["train"] * 7)[number // 4]
    write_rows(tmp_path, rows)
    source = read(tmp_path)
    splits = {row.identity: split for split, rows in source.rows.items() for row in rows}
    assert len(splits) == 10 and splits["person 2"] == "held_out"
    assert source.people == {"train": 8, "validation": 1, "held_out": 1}
    assert [source.count(split) for split in SPLITS] == [32, 4, 4]


@pytest.fixture
def two_faces(tmp_path):
    for name, picture in bundled_portraits().items():
        write_image(tmp_path / f"{name}.png", picture)
    return tmp_path


def test_too_few_people_are_one_line(two_faces):
    with pytest.raises(DataError, match="2 photos of 2 people leave none for validation; .* add people, or name the split"):
        read(two_faces)


def test_evaluation_photos_are_there_once(two_faces):
    write_image(two_faces / "other.png", bundled_portraits()["astronaut"].flip(2))
    splits = {"astronaut": "train", "grace_hopper": "validation", "other": "held_out"}
    write_rows(two_faces, [{"file_name": f"{name}.png", "split": split, "identity": name} for name, split in splits.items()])
    source = read(two_faces)
    assert isinstance(source, FolderSource) and source.load("train", [0, 1]).ids == ["astronaut.png"] * 2
    held_out = source.load("held_out", [0])
    assert (held_out.ids, held_out.people, source.count("held_out")) == (["other.png"], ["other"], 1)
    with pytest.raises(IndexError):
        source.load("held_out", [0, 1])
