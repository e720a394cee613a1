"""A folder of photos is split by person: nobody is in two splits."""

import json

import pytest
import torch

from policies.retoucher.photos import FolderSource
from portraitkit.errors import DataError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image


def write_rows(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def split_of_people(source, rows):
    splits = {}
    for split, chosen in source.rows.items():
        for row in chosen:
            splits.setdefault(row["identity"], set()).add(split)
    return splits


def test_nobody_is_in_two_splits_and_the_people_are_counted(tmp_path):
    write_image(tmp_path / "a.png", torch.zeros(3, 8, 8))
    rows = [{"file_name": "a.png", "identity": f"person {number // 4}"} for number in range(40)]
    rows[12]["split"] = "held_out"  # one row says where its person belongs
    write_rows(tmp_path, rows)
    source = FolderSource(tmp_path, 128, need_anchors=False)
    splits = split_of_people(source, rows)
    assert len(splits) == 10 and all(len(some) == 1 for some in splits.values()) and splits["person 3"] == {"held_out"}
    assert sum(source.people.values()) == 10 and min(source.people.values()) >= 1 and source.people["train"] >= 6


def test_where_no_identity_is_given_the_net_tells_people_apart(tmp_path):
    for name, picture in bundled_portraits().items():
        write_image(tmp_path / f"{name}.png", picture)
    write_rows(tmp_path, [{"file_name": f"{name}.png"} for name in bundled_portraits()] * 10)
    with pytest.raises(DataError, match="add people, or give every row its split"):
        FolderSource(tmp_path, 128, need_anchors=False)  # two people for three splits
