"""Lint: every fault is put into a clean set and must be found, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from portraitkit.errors import DataError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import read_image, write_image
from preference_data.commands.lint import KINDS, lint_data, read_entries
from preference_data.commands.options import LintConfig
from preference_data.pair_set import METADATA, read_pairs, write_pairs
from preference_data.schema import Fault, Origin, Pair
from preference_data.verdict import OTHER


def kinds(folder, capsys, **options):
    code = lint_data(LintConfig(folder, json=Path("-"), **options))
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["findings"] else 0)
    assert all(finding["kind"] in KINDS and finding["lines"] and finding["message"] for finding in report["findings"])
    return report["counts"]


def change(folder, index, **fields):
    pairs = read_pairs(folder)
    pairs[index] = replace(pairs[index], **fields)
    write_pairs(folder, pairs)
    return pairs


def test_a_built_set_is_clean(pair_set, capsys):
    assert kinds(pair_set, capsys, identity=False) == {}


def test_a_truncated_picture(pair_set, capsys):
    path = pair_set / read_pairs(pair_set)[0].a
    path.write_bytes(path.read_bytes()[:200])
    assert kinds(pair_set, capsys, identity=False) == {"bad_image": 1}


def test_a_candidate_of_another_frame(pair_set, capsys):
    path = pair_set / read_pairs(pair_set)[0].a
    write_image(path, read_image(path).pixels[:, :40])
    assert kinds(pair_set, capsys, identity=False) == {"bad_image": 1}


def test_duplicates_and_near_duplicates_across_splits(pair_set, capsys):
    pairs = read_pairs(pair_set)
    first = next(pair for pair in pairs if pair.split == "train")
    last = next(pair for pair in pairs if pair.split == "held_out")
    pixels = read_image(pair_set / first.input).pixels
    write_image(pair_set / last.input, pixels)
    assert kinds(pair_set, capsys, identity=False) == {"duplicate_across_splits": 1}
    write_image(pair_set / last.input, (pixels * 0.93).clamp(0, 1))
    assert kinds(pair_set, capsys, identity=False) == {"near_duplicate_across_splits": 1}


def test_a_person_in_two_splits_by_name(pair_set, capsys):
    pairs = read_pairs(pair_set)
    change(pair_set, -1, identity=pairs[0].identity)
    assert kinds(pair_set, capsys, identity=False) == {"person_across_splits": 1}


def test_rows_that_repeat_each_other_and_contradict(pair_set, capsys):
    pairs = read_pairs(pair_set)
    one = pairs[0]
    twin = replace(one, id="twin", a=one.b, b=one.a, origin_a=one.origin_b, origin_b=one.origin_a, annotator="anna", scores=None)
    swapped = {name: OTHER[verdict] for name, verdict in one.verdicts.items()}
    write_pairs(pair_set, [*pairs, replace(twin, verdicts=swapped, overall=OTHER[one.overall])])
    assert kinds(pair_set, capsys, identity=False) == {"duplicate_row": 1}
    flat = replace(one, annotator="anna", scores=None, verdicts=dict.fromkeys(one.verdicts, "a"), overall="a")
    other = replace(twin, verdicts=dict.fromkeys(one.verdicts, "a"), overall="a")
    write_pairs(pair_set, [flat, *pairs[1:], other])
    assert kinds(pair_set, capsys, identity=False) == {"duplicate_row": 1, "verdict_inconsistent": 1}


def test_truth_that_does_not_follow_from_the_scores(pair_set, capsys):
    pair = read_pairs(pair_set)[0]
    change(pair_set, 0, scores={name: (5.0, 5.0) for name in pair.scores})
    assert kinds(pair_set, capsys, identity=False) == {"verdict_inconsistent": 1}


def test_one_picture_twice_cannot_win(pair_set, capsys):
    pair = read_pairs(pair_set)[0]
    change(pair_set, 0, b=pair.a)
    assert kinds(pair_set, capsys, identity=False) == {"same_candidates": 1}


def test_missing_anchors(pair_set, capsys):
    change(pair_set, 0, anchor=None)
    assert kinds(pair_set, capsys, identity=False) == {"missing_anchor": 1}
    write_pairs(pair_set, [replace(pair, anchor=None) for pair in read_pairs(pair_set)])
    assert kinds(pair_set, capsys, identity=False) == {}
    assert kinds(pair_set, capsys, identity=False, need_anchors=True) == {"missing_anchor": 8}


@pytest.fixture
def photo_set(tmp_path):
    portraits = bundled_portraits()
    square = portraits["grace_hopper"][:, :512]
    for name, pixels in (("collins", portraits["astronaut"]), ("hopper", square), ("mirror", portraits["astronaut"].flip(2))):
        write_image(tmp_path / f"{name}.png", pixels)
    write_image(tmp_path / "grey.png", torch.full((3, 512, 512), 0.5))
    return tmp_path


def write_photos(folder, *rows):
    (folder / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_photos_with_anchors_of_another_person(photo_set, capsys):
    write_photos(photo_set, {"file_name": "collins.png", "anchor_file_name": "mirror.png"})
    assert kinds(photo_set, capsys) == {}
    write_photos(photo_set, {"file_name": "collins.png", "anchor_file_name": "hopper.png"})
    assert kinds(photo_set, capsys) == {"anchor_of_another_person": 1}
    write_photos(photo_set, {"file_name": "collins.png", "anchor_file_name": "grey.png"})
    assert kinds(photo_set, capsys) == {"no_face": 1}


def test_candidates_of_another_person(photo_set, capsys):
    files = {"input": "collins.png", "a": "collins.png", "b": "hopper.png", "overall": None, "origin_a": Origin("rt")}
    pair = Pair("p", **files, origin_b=Origin("rt"))
    write_pairs(photo_set, [pair])
    assert kinds(photo_set, capsys) == {"candidate_of_another_person": 1}
    warped = replace(pair, id="q", origin_b=Origin("degradations", (Fault("identity_warp", 1.0),)))
    write_pairs(photo_set, [warped, replace(pair, id="r", identity="synthetic-1")])
    assert "candidate_of_another_person" not in kinds(photo_set, capsys)
    write_pairs(photo_set, [replace(pair, b="grey.png")])
    assert kinds(photo_set, capsys) == {"no_face": 1}


def test_one_person_in_two_splits_by_the_net(photo_set, capsys):
    write_photos(photo_set, {"file_name": "collins.png", "split": "train"}, {"file_name": "mirror.png", "split": "held_out"})
    assert kinds(photo_set, capsys) == {"person_across_splits": 1}
    write_photos(photo_set, {"file_name": "collins.png", "split": "train"}, {"file_name": "hopper.png", "split": "held_out"})
    assert kinds(photo_set, capsys) == {}


def test_photos_without_a_split_are_in_no_two_splits(photo_set, capsys):
    rows = "\n" * 7 + '{"file_name": "collins.png", "identity": "eileen"}\n{"file_name": "mirror.png", "identity": "eileen"}\n'
    (photo_set / METADATA).write_text(rows)  # lines 8 and 9: commands assign splits by person, wherever the rows stand
    assert kinds(photo_set, capsys) == {}


def test_bad_rows_of_either_kind(photo_set, pair_set):
    write_photos(photo_set, {"file_name": "collins.png"}, {"file_name": "none.png"}, {"file_name": "hopper.png", "split": "test"})
    entries, findings = read_entries(photo_set)
    assert len(entries) == 1 and [finding.lines for finding in findings] == [(2,), (3,)]
    with (pair_set / METADATA).open("a") as file:
        file.write("{")
    assert [finding.kind for finding in read_entries(pair_set)[1]] == ["bad_row"]


def test_a_file_in_place_of_its_folder_is_named(pair_set):
    with pytest.raises(DataError, match=r"metadata.jsonl: is a file; give the folder that it is in$"):
        lint_data(LintConfig(pair_set / METADATA))
    with pytest.raises(DataError, match="is a file"):
        read_pairs(pair_set / METADATA)


def test_the_table_says_what_and_where(pair_set, capsys):
    change(pair_set, 0, anchor=None)
    assert lint_data(LintConfig(pair_set, identity=False, json=pair_set / "lint.json")) == 1
    out = capsys.readouterr().out
    assert "missing_anchor" in out and json.loads((pair_set / "lint.json").read_text())["counts"] == {"missing_anchor": 1}
