"""Unreadable pictures are found before a run, named and set aside."""

import pytest
import torch

from portraitkit.errors import DataError
from portraitkit.pictures.images import write_image
from portraitkit.vlm.readable import set_aside_unreadable
from portraitkit.vlm.rows import Row


@pytest.fixture
def rows(tmp_path):
    """Nine rows in two splits; the last picture of train is a truncated JPEG."""
    made = []
    for index in range(9):
        path = tmp_path / f"{index}.jpg"
        write_image(path, torch.rand(3, 64, 64))
        made.append(Row((path,), "x", "y", {}, f"train.jsonl line {index + 1}"))
    bad = made[6].pictures[0]
    bad.write_bytes(bad.read_bytes()[:700])
    return {"train": made[:7], "held_out": made[7:]}


def test_a_truncated_picture_costs_its_row_only(rows):
    seen = []
    kept, aside = set_aside_unreadable(rows, most=0.2, advance=lambda: seen.append(1))
    assert kept == {"train": rows["train"][:6], "held_out": rows["held_out"]} and len(seen) == 9
    assert [entry["row"] for entry in aside] == ["train.jsonl line 7"] and "cannot be read" in aside[0]["reason"]


def test_too_many_stop_the_run(rows):
    with pytest.raises(DataError, match=r"1 of 9 rows .* train.jsonl line 7"):
        set_aside_unreadable(rows, most=0.1)
    with pytest.raises(DataError, match="no row of the held_out split"):
        set_aside_unreadable({"train": rows["held_out"], "held_out": rows["train"][6:]}, most=0.5)


def test_pictures_in_memory_are_taken_as_they_are():
    row = Row((torch.zeros(3, 8, 8),), "x", "y", {})
    assert set_aside_unreadable({"train": [row]}, most=0) == ({"train": [row]}, [])
