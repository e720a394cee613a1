"""Embedded rows of the makeup tasks, and the figures that are reported about answers to them."""

import json

import pytest
import torch
from skimage.color import deltaE_ciede2000

from policies.vlm.tasks import synthetic_rows
from policies.vlm.tasks.makeup import LIPS, TASK
from policies.vlm.tasks.makeup_scores import color_metrics, hex_to_lab, look_metrics, pair_items, region_of
from policies.vlm.tasks.synthetic_rows import makeup_row
from portraitkit.errors import DataError
from portraitkit.faces.regions import LIPS_OUTER
from preference_data.people.makeup import render_makeup, split_of
from preference_data.people.synthetic import SPLITS, make_person

LIP = {"shape": "LIP_FULL_BASIC", "color": "#B03050"}
BLUSH = {"shape": "BLUSHER_CENTER_WIDE_BASIC", "color": "#E8909C"}
SHADOW = {"shape": "EYESHADOW_OVEREYE_FULL_BASIC", "color": "#6B4A3A"}


def figures_of(task, completions, truths) -> dict[str, float]:
    assert task.metrics is not None
    return task.metrics(completions, truths)


def tagged(*items) -> str:
    return f"<answer>{json.dumps(items)}</answer>"


@pytest.mark.parametrize("task", [TASK, LIPS])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_seeded_and_readable_by_their_task(task, split):
    row, again, other = (task.make_row(split, seed) for seed in (3, 3, 4))
    assert torch.equal(row["image"], again["image"]) and row["solution"] == again["solution"]
    assert not torch.equal(row["image"], other["image"]) and row["solution"] != other["solution"]
    assert row["image"].shape == (3, 128, 128) and row["image"].min() >= 0 and row["image"].max() <= 1
    assert row["synthetic"] is True and row["split"] == split and row["seed"] == 3
    truth = task.read_truth(row)
    assert task.score(task.perfect(truth), truth, "fixed").reward == pytest.approx(task.ranges["fixed"][1])
    assert all(value == json.loads(json.dumps(value)) for key, value in row.items() if key != "image")


def test_each_task_makes_its_own_rows():
    shapes = []
    for task in (TASK, LIPS):
        assert task.make_row is not None
        rows = [task.make_row("train", seed) for seed in (0, 1, 2)]
        shapes.append({item["shape"] for row in rows for item in row["solution"]})
    assert len(shapes[0]) > 2 and shapes[1] == {"LIP_FULL_BASIC"}


def test_splits_share_neither_people_nor_colours():
    rows = {split: [makeup_row(split, seed) for seed in range(6)] for split in SPLITS}
    for split, made in rows.items():
        assert all(any(low <= row["morph"] <= high for low, high in SPLITS[split]) for row in made)
        assert all(split_of(item["color"]) == split for row in made for item in row["solution"])


def test_some_faces_are_bare_where_all_makeup_is_asked_for():
    rows = [makeup_row("train", seed) for seed in range(40)]
    bare = [row for row in rows if not row["solution"]]
    assert 1 <= len(bare) <= 15 and all(TASK.perfect(TASK.read_truth(row)) == tagged() for row in bare)
    assert all(makeup_row("train", row["seed"], lips_only=True)["solution"] for row in bare[:2])


def test_a_face_of_the_callers_is_made_up():
    person = make_person("train", torch.Generator().manual_seed(5))
    row = makeup_row("train", 1, lips_only=True, draw=lambda generator: person)
    assert torch.equal(row["image"], render_makeup(person.clean, person.mesh, row["solution"]))


def test_bare_faces_and_empty_answers_have_figures():
    figures = figures_of(TASK, [tagged(), tagged(LIP), tagged(), "?"], [[], [], [LIP], []])
    assert figures["bare_as_bare"] == pytest.approx(1 / 3) and figures["made_up_as_bare"] == 1
    assert figures["set_f1"] == figures["soft_f1"] == 1 / 4 and figures["unreadable"] == 1 / 4
    assert figures["missing"] == 1 and figures["lips_extra"] == 1 / 4 and "de76" not in figures
    only = figures_of(TASK, [tagged()], [[]])
    assert only["soft_f1"] == 1 and "missing" not in only and "made_up_as_bare" not in only
    assert "bare_as_bare" not in figures_of(TASK, [tagged(LIP)], [[LIP]])


def test_lips_alone_change_only_the_mouth(monkeypatch):
    row, full = makeup_row("train", 1, lips_only=True), makeup_row("train", 1)
    assert [item["shape"] for item in row["solution"]] == ["LIP_FULL_BASIC"] and full["morph"] == row["morph"]
    meshes = []
    monkeypatch.setattr(synthetic_rows, "render_makeup", lambda photo, mesh, look: meshes.append(mesh) or photo)
    changed = (makeup_row("train", 1, lips_only=True)["image"] != row["image"]).any(0).nonzero().float()
    low, high = meshes[0][list(LIPS_OUTER)].amin(0) - 4, meshes[0][list(LIPS_OUTER)].amax(0) + 4
    assert len(changed) > 50 and ((changed.flip(1) > low) & (changed.flip(1) < high)).all()


def test_unknown_split():
    with pytest.raises(DataError, match="held_uot.*did you mean 'held_out'"):
        makeup_row("held_uot", 0)


def test_perfect_answers_have_perfect_figures():
    truths = [[LIP, BLUSH], [SHADOW]]
    figures = figures_of(TASK, [tagged(BLUSH, LIP), tagged(SHADOW)], truths)
    assert figures["unreadable"] == figures["missing"] == figures["unknown_region"] == 0
    assert figures["set_f1"] == figures["shape_accuracy"] == 1 and figures["soft_f1"] == pytest.approx(1)
    for name in ("de76", "lips_de76", "blush_de2000", "eyeshadow_de76_missing_100", "lips_extra"):
        assert figures[name] == 0


def test_differences_are_those_of_the_colours_per_region():
    answer = [LIP | {"color": "#C04060"}, BLUSH | {"shape": "BLUSHER_SUN_KISSED"}]
    figures = figures_of(TASK, [tagged(*answer)], [[LIP, BLUSH]])
    one, other = hex_to_lab("#C04060"), hex_to_lab("#B03050")
    expected = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
    assert figures["lips_de76"] == pytest.approx(expected) and figures["de76"] == pytest.approx(expected / 2)
    assert figures["lips_de2000"] == pytest.approx(float(deltaE_ciede2000(one, other)))
    assert figures["lips_shape_accuracy"] == 1 and figures["blush_shape_accuracy"] == 0 and figures["shape_accuracy"] == 0.5
    assert not any(name.startswith("eyeshadow_de") for name in figures)


def test_what_is_missing_unreadable_or_too_much_is_counted():
    truths = [[LIP, BLUSH], [LIP], [LIP], [BLUSH]]
    answers = [tagged(LIP), "no idea", tagged(LIP, SHADOW), tagged({"shape": "nails", "color": "#000000"})]
    figures = figures_of(TASK, answers, truths)
    assert figures["unreadable"] == 0.25
    assert figures["missing"] == pytest.approx(3 / 5) and figures["lips_missing"] == pytest.approx(1 / 3) and figures["blush_missing"] == 1
    assert figures["de76"] == 0 and figures["de76_missing_100"] == pytest.approx(60)
    assert "blush_de76" not in figures and figures["blush_de76_missing_100"] == 100
    assert figures["eyeshadow_extra"] == figures["unknown_region"] == 0.25
    assert figures["shape_accuracy"] == pytest.approx(2 / 5)
    assert figures["set_f1"] == pytest.approx((2 / 3 + 0 + 2 / 3 + 0) / 4)


@pytest.mark.parametrize("broken", ["", "[]", tagged([]), tagged(*[LIP] * 4), tagged(LIP | {"color": "#GGGGGG"}), "x" + tagged(LIP)])
def test_unreadable_is_what_earns_no_accuracy(broken):
    assert figures_of(TASK, [broken], [[LIP]])["unreadable"] == 1
    assert TASK.score(broken, [LIP], "fixed").parts["accuracy"] == 0


def test_two_items_of_one_region_are_paired_by_likeness():
    crease = {"shape": "EYESHADOW_CREASE", "color": "#202020"}
    pairs, left = pair_items([SHADOW, crease, LIP], [crease, SHADOW])
    assert [(pair.truth, pair.item) for pair in pairs] == [(crease, crease), (SHADOW, SHADOW)] and left == [LIP]
    pairs, left = pair_items([crease, SHADOW], [SHADOW])
    assert pairs[0].item == SHADOW and left == [crease]
    assert [region_of(name) for name in ("lip_x", "BLUSHER_Y", "EYESHADOW", "nose", "")] == [
        "lips",
        "blush",
        "eyeshadow",
        "unknown",
        "unknown",
    ]


def test_lips_figures():
    answers = ['<answer>{"color": "#B03050"}</answer>', "?", '<answer>{"color": "#B0305G"}</answer>']
    figures = figures_of(LIPS, answers, [[LIP]] * 3)
    assert figures == {
        "unreadable": pytest.approx(2 / 3),
        "missing": pytest.approx(2 / 3),
        "de76": 0,
        "de2000": 0,
        "de76_missing_100": pytest.approx(200 / 3),
    }


def test_nothing_to_average():
    assert figures_of(TASK, [], []) == figures_of(LIPS, [], []) == {}
    assert "de76" not in figures_of(LIPS, ["?"], [[LIP]])


@pytest.mark.parametrize("metrics", [color_metrics, look_metrics])
def test_each_answer_needs_its_truth(metrics):
    with pytest.raises(ValueError, match="zip"):
        metrics([[LIP]] * 2, [[LIP]])
