"""Rows are read and made; unreadable pictures are named and set aside before a run."""

import json

import pytest
import torch

from portraitkit.errors import DataError
from portraitkit.pictures.images import write_image
from portraitkit.vlm.rows import FRESH, Row, first_row, make_rows, messages, open_rows, read_rows, set_aside_unreadable, shuffled


def test_equal_seeds_give_equal_rows_and_other_seeds_other_ones(brightness):
    first, same, other = (make_rows(brightness, "train", 8, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.pictures[0], b.pictures[0]) and a.truth == b.truth for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a.pictures[0], b.pictures[0]) for a in first for b in other)
    assert first[0].target == brightness.perfect(first[0].truth)


def test_shuffled_rows_keep_their_truths_and_lose_their_pictures(rows):
    mixed = shuffled(rows)
    assert [row.truth for row in mixed] == [row.truth for row in rows]
    assert all(a.pictures[0] is not b.pictures[0] for a, b in zip(mixed, rows, strict=True))


def write_folder(folder, counts):
    folder.mkdir(exist_ok=True)
    for name, count in counts.items():
        lines = []
        for index in range(count):
            write_image(folder / f"{name}{index}.png", torch.full((3, 16, 16), 0.2))
            lines.append(json.dumps({"image": f"{name}{index}.png", "word": "dark", "age_band": "20-29"}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder


def test_a_folder_is_read_and_validation_is_set_aside(brightness, tmp_path):
    folder = write_folder(tmp_path / "data", {"train": 20, "test": 6})
    found = open_rows(brightness, str(folder), {"train": 0, "validation": 3, "held_out": 4}, 0)
    assert {split: len(some) for split, some in found.items()} == {"train": 17, "validation": 3, "held_out": 4}
    assert found["train"][0].columns["age_band"] == "20-29" and found["train"][0].images()[0].size == (16, 16)
    assert not {row.pictures for row in found["train"]} & {row.pictures for row in found["validation"]}


def row(text):
    return lambda folder: (folder / "train.jsonl").write_text(text + "\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "test.jsonl").unlink(), ["test.jsonl"]),
        (lambda folder: (folder / "train.jsonl").write_text('{"image": "train0.png", "word": "grey"}\n'), ["line 1", "grey"]),
        (lambda folder: (folder / "train.jsonl").write_text('\n{"image": "no.png", "word": "dark"}\n'), ["line 2", "no.png"]),
        (lambda folder: (folder / "train.jsonl").write_text("[1]\n"), ["line 1", "JSON object"]),
        (lambda folder: (folder / "train.jsonl").write_text("{\n"), ["line 1", "not JSON"]),
        (lambda folder: (folder / "train.jsonl").write_text(""), ["no rows"]),
        (row('{"images": "train0.png", "word": "dark"}'), ["line 1", "images 'train0.png'", "list"]),
        (row('{"image": "../data/train0.png", "word": "dark"}'), ["line 1", "leaves the folder"]),
        (row('{"image": "/etc/hostname", "word": "dark"}'), ["line 1", "leaves the folder"]),
        (row(json.dumps({"image": "a" * 5000, "word": "dark"})), ["line 1", "must name a file"]),
        (row('{"image": "train0.png\\u0000", "word": "dark"}'), ["line 1", "must name a file"]),
        (row('{"image": "train0.png", "word": "dark", "word": "bright"}'), ["line 1", "given twice"]),
    ],
)
def test_what_breaks_a_folder_is_named(brightness, tmp_path, spoil, words):
    folder = write_folder(tmp_path / "data", {"train": 6, "test": 2})
    spoil(folder)
    with pytest.raises(DataError) as error:
        open_rows(brightness, str(folder), {"train": 0, "validation": 1, "held_out": 0}, 0)
    assert all(word in str(error.value) for word in words)


def test_a_task_without_data_asks_for_some(brightness):
    from dataclasses import replace

    with pytest.raises(DataError, match="give --data"):
        make_rows(replace(brightness, make_row=None), "train", 1, 0)


def test_a_target_column_is_what_is_imitated(brightness, tmp_path):
    write_image(tmp_path / "a.png", torch.full((3, 16, 16), 0.2))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "word": "dark", "target": "so dark"}))
    assert read_rows(tmp_path / "rows.jsonl", brightness)[0].target == "so dark"


def test_messages_show_the_picture_before_the_prompt():
    turns = messages("Light?", "dark")
    assert [part["type"] for part in turns[0]["content"]] == ["image", "text"] and turns[1]["role"] == "assistant"


def test_runs_draw_rows_that_the_embedded_models_were_not_taught_on_and_share_the_held_out_ones(brightness):
    firsts = [first_row("train", seed) for seed in range(100)]
    assert min(firsts) >= FRESH and min(abs(a - b) for a in firsts for b in firsts if a != b) > 1_000_000
    assert {first_row("held_out", seed) for seed in range(100)} == {0}
    held_out = [make_rows(brightness, "held_out", 3, seed) for seed in (0, 7)]
    assert all(torch.equal(a.pictures[0], b.pictures[0]) for a, b in zip(*held_out, strict=True))


@pytest.fixture
def rows_in_files(tmp_path):
    """Nine rows in two splits; the last picture of train is a truncated JPEG."""
    made = []
    for index in range(9):
        path = tmp_path / f"{index}.jpg"
        write_image(path, torch.rand(3, 64, 64))
        made.append(Row((path,), "x", "y", {}, f"train.jsonl line {index + 1}"))
    bad = made[6].pictures[0]
    bad.write_bytes(bad.read_bytes()[:700])
    return {"train": made[:7], "held_out": made[7:]}


def test_a_truncated_picture_costs_its_row_only(rows_in_files):
    seen = []
    kept, aside = set_aside_unreadable(rows_in_files, most=0.2, advance=lambda: seen.append(1))
    assert kept == {"train": rows_in_files["train"][:6], "held_out": rows_in_files["held_out"]} and len(seen) == 9
    assert [entry["row"] for entry in aside] == ["train.jsonl line 7"] and "cannot be read" in aside[0]["reason"]


def test_too_many_stop_the_run(rows_in_files):
    with pytest.raises(DataError, match=r"1 of 9 rows .* train.jsonl line 7"):
        set_aside_unreadable(rows_in_files, most=0.1)
    with pytest.raises(DataError, match="no row of the held_out split"):
        set_aside_unreadable({"train": rows_in_files["held_out"], "held_out": rows_in_files["train"][6:]}, most=0.5)


def test_pictures_in_memory_are_taken_as_they_are():
    row = Row((torch.zeros(3, 8, 8),), "x", "y", {})
    assert set_aside_unreadable({"train": [row]}, most=0) == ({"train": [row]}, [])
