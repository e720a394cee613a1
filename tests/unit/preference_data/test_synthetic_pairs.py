"""Synthetic pairs: seeded, of disjoint people and strengths, with a truth that follows its rule."""

import time
from collections import Counter

import pytest
import torch

from preference_data.people.synthetic_pairs import MODES, OFFSETS, draw_plan, identity_of, make_pair, true_scores, verdicts_of
from preference_data.schema import DIMENSIONS, SPLITS


@pytest.fixture(scope="module")
def plans():
    generator = torch.Generator().manual_seed(0)
    return {split: [draw_plan(split, generator) for _ in range(1500)] for split in SPLITS}


def test_equal_seeds_give_equal_pairs_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = make_pair("train", 5), make_pair("train", 5)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
    assert not torch.equal(one["input"], make_pair("train", 6)["input"])
    assert one["a"].shape == one["b"].shape == one["input"].shape == (3, 128, 128)


def test_strengths_of_a_split_are_never_those_of_another(plans):
    seen = {split: {round(s, 9) for plan in own for side in "ab" for s in plan.faults(side).values()} for split, own in plans.items()}
    for one in SPLITS:
        low, high = OFFSETS[one]
        assert all(any(low <= 4 * s - level <= high for level in range(1, 5)) for s in seen[one])
        assert all(not seen[one] & seen[other] for other in SPLITS if other != one)
    ranges = sorted(OFFSETS.values())
    assert all(before[1] < after[0] for before, after in zip(ranges[:-1], ranges[1:], strict=True)) and ranges[-1][1] < 1 + ranges[0][0]


def test_people_of_a_split_are_never_those_of_another():
    names = {split: {make_pair(split, seed, size=64)["identity"] for seed in range(12)} for split in SPLITS}
    assert all(len(own) == 12 for own in names.values()) and len(set.union(*names.values())) == 36


def test_truth_follows_the_rule(plans):
    for plan in plans["train"][:300]:
        scores = plan.scores()
        verdicts, overall = verdicts_of(scores)
        for name, (a, b) in scores.items():
            assert min(a, b) >= 1 and max(a, b) <= 5
            assert verdicts[name] == ("tie" if a == b else "a" if a > b else "b")
        assert overall == ("a" if sum(a - b for a, b in scores.values()) > 0 else "b")
    assert true_scores({}) == dict.fromkeys(DIMENSIONS, 5)
    assert true_scores({"over_smoothing": 3}) == dict.fromkeys(DIMENSIONS, 5) | {"skin_smoothing": 2, "texture": 4}
    assert true_scores({"noise": 4, "grid": 1})["texture"] == 3


def test_equal_scores_of_a_dimensions_own_fault_are_equal_strengths(plans):
    for plan in plans["held_out"]:
        a, b = plan.faults("a"), plan.faults("b")
        for name, kind in plan.kinds.items():
            assert (plan.a[name] > plan.b[name]) == (a.get(kind, 0) > b.get(kind, 0))
            assert (plan.a[name] == plan.b[name]) == (a.get(kind, 0) == b.get(kind, 0))


def test_near_ties_and_labels_are_among_them(plans):
    counts = Counter(plan.mode for plan in plans["train"])
    for mode, share in MODES.items():
        assert counts[mode] / 1500 == pytest.approx(share, abs=0.05)
    for plan in plans["train"]:
        gaps = [abs(plan.a[name] - plan.b[name]) for name in DIMENSIONS]
        assert sum(gaps) == 1 or plan.mode != "near"
        assert not any(plan.a.values()) or not any(plan.b.values()) or plan.mode != "label"


def test_no_side_and_no_verdict_gives_itself_away(plans):
    for own in plans.values():
        truths = [verdicts_of(plan.scores()) for plan in own]
        assert sum(overall == "a" for _, overall in truths) / 1500 == pytest.approx(0.5, abs=0.05)
        for name in DIMENSIONS:
            counts = Counter(verdicts[name] for verdicts, _ in truths)
            assert counts["a"] / 1500 == pytest.approx(counts["b"] / 1500, abs=0.05) and counts["tie"] / 1500 < 0.55


def test_a_label_is_the_honest_retouch_and_ties_show_no_difference():
    pair = next(pair for seed in range(100) if (pair := make_pair("train", seed, size=64, mode="label")))
    label = "a" if not pair["faults_a"] else "b"
    assert pair["overall"] == label and not pair[f"faults_{label}"]
    near = make_pair("validation", 4, mode="near")
    assert (near["a"] - near["b"]).abs().mean() < (near["a"] - near["input"]).abs().mean() + 0.05


def test_it_is_fast():
    make_pair("train", 0)
    started = time.process_time()
    for seed in range(10):
        make_pair("train", seed)
    assert (time.process_time() - started) / 10 < 0.3  # 60 ms of one thread on an idle core; type checks double it


def test_identity_names_the_person():
    from preference_data.people.synthetic import make_case

    assert identity_of(make_case("train", 3, size=64)) == identity_of(make_case("train", 3, size=64, count=(0, 0)))
