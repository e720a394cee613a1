"""Embedded rows of the emotion task: seeded, of disjoint people, with labels that the task reads."""

from collections import Counter
from random import Random

import pytest
import torch

from policies.vlm.tasks.emotion import TASK
from policies.vlm.tasks.synthetic_rows import emotion_row, make_target
from portraitkit.errors import DataError
from preference_data.emotion_rows import EMOTIONS
from preference_data.people.expressions import COMBINATIONS, INTENSITY, UNITS, draw_expression
from preference_data.people.synthetic import SPLITS


@pytest.fixture(scope="module")
def rows():
    return {split: [emotion_row(split, seed) for seed in range(8)] for split in SPLITS}


def test_equal_seeds_give_equal_rows_and_other_seeds_others(rows):
    again = emotion_row("train", 5)
    assert torch.equal(again.pop("image"), rows["train"][5]["image"])
    assert again == {name: value for name, value in rows["train"][5].items() if name != "image"}
    assert len({row["morph"] for made in rows.values() for row in made}) == 24


def test_splits_share_no_person(rows):
    for split, made in rows.items():
        assert all(any(low <= row["morph"] <= high for low, high in SPLITS[split]) for row in made)


def test_rows_are_what_the_task_reads(rows):
    for row in sum(rows.values(), []):
        assert row["image"].shape == (3, 128, 128) and row["image"].min() >= 0 and row["image"].max() <= 1
        assert row["synthetic"] is True and list(row["intensities"]) == row["AUs"]
        truth = TASK.read_truth(row)
        for mode in ("paper", "fixed"):
            # a row without units earns nothing for them in the published reward
            assert TASK.score(row["target"], truth, mode).reward == (3 if row["AUs"] or mode == "fixed" else 2)


def test_the_task_makes_them(rows):
    assert TASK.make_row is not None
    assert torch.equal(TASK.make_row("held_out", 3)["image"], rows["held_out"][3]["image"])


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state()
    emotion_row("train", 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="held_out"):
        emotion_row("heldout", 0)


def test_no_two_emotions_share_a_combination_and_all_are_rendered():
    combinations = [units for emotion in COMBINATIONS.values() for units in set(emotion)]
    assert len(combinations) == len(set(combinations))
    assert {unit for units in combinations for unit in units} == set(UNITS)
    assert all(25 in units for units in combinations if 26 in units)
    assert all(list(units) == sorted(units) for units in combinations)
    assert set(COMBINATIONS) == set(EMOTIONS) - {"contempt"}


def test_emotions_are_equally_likely_and_intensities_visible():
    drawn = [draw_expression(Random(seed)) for seed in range(2100)]
    counts = Counter(emotion for emotion, _ in drawn)
    assert all(abs(counts[emotion] - 300) < 75 for emotion in COMBINATIONS)
    assert all(INTENSITY[0] <= value <= INTENSITY[1] for _, units in drawn for value in units.values())
    assert {unit for _, units in drawn for unit in units} == set(UNITS)


def test_the_target_names_units_in_order():
    assert make_target([12, 6], "happiness") == "<think>(AU6) (AU12) show happiness</think><answer>happiness</answer>"
    assert make_target([], "neutral") == "<think>no units show neutral</think><answer>neutral</answer>"
