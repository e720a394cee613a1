"""The figures of a judge on hand-made answers: exact numbers, a perfect judge, one that always names the first, a coin."""

import random
from pathlib import Path

import pytest

from preference_data.contract import Answer, write_brief
from preference_data.schema import DIMENSIONS
from preference_data.verdict import ORDERS, shown_as
from reward_models.evaluation.figures import all_figures, by_group, calibration, figures, fit_thresholds, gain, majority, unreadable_share
from reward_models.judge.pairs import JudgedPair, View, judged_of
from reward_models.judge.preference_task import answer_of

VIEW = View("as-taken", "brief")
NOWHERE = Path("nowhere")


def pair(name, overall, verdicts=None, identity="", **groups):
    verdicts = dict.fromkeys(DIMENSIONS, overall) if verdicts is None else verdicts
    return JudgedPair(name, identity or name, NOWHERE, NOWHERE, NOWHERE, overall, verdicts, groups=groups, synthetic=True)


def text(better, scores=(4, 4)):
    """An answer with these scores on every dimension."""
    return write_brief(Answer(dict.fromkeys(DIMENSIONS, scores), better, ""))


def answers(one, forward, backward):
    return judged_of(VIEW, one.id, (forward, backward))


def says(one, forward, backward):
    """Verdicts about the files of the two orders, the scores with them."""
    shown = (shown_as(verdict, order) for verdict, order in zip((forward, backward), ORDERS, strict=True))
    return answers(one, *(text(place, (5, 3) if place == "first" else (3, 5)) for place in shown))


PAIRS = [pair("p0", "a"), pair("p1", "a"), pair("p2", "b"), pair("p3", "b"), pair("p4", "a")]
JUDGED = [
    says(PAIRS[0], "a", "a"),  # right in both orders
    says(PAIRS[1], "a", "b"),  # names the first both times
    says(PAIRS[2], "b", "a"),  # names the second both times
    says(PAIRS[3], "a", "a"),  # wrong in both orders
    answers(PAIRS[4], text("first", (5, 3)), "I cannot tell."),  # right, then unreadable
]


def test_the_figures_are_those_counted_by_hand():
    found = figures(PAIRS, JUDGED, "overall")
    assert found["acc_forward"] == pytest.approx(4 / 5)
    assert found["acc_reversed"] == pytest.approx(1 / 5)
    assert found["acc_average"] == pytest.approx(1 / 2)
    assert found["acc_consistent"] == pytest.approx(1 / 5)
    assert found["flip_rate"] == pytest.approx(2 / 4)  # of the pairs with two answers that can be read
    # Shown first is named by: p0 a first, p1 twice, p3 a first, p4: 5 of 9.
    assert found["p_first"] == pytest.approx(5 / 9)
    assert found["tie_rate"] == 0 and found["n"] == 5
    # Mean differences: +2, 0, 0, +2 (truth b), +2; a difference of 0 is a tie for tau and half a hit for diff.
    assert found["tau"] == pytest.approx(2 / 5) and found["diff"] == pytest.approx((1 + 0.5 + 0.5 + 0 + 1) / 5)
    assert unreadable_share(JUDGED) == pytest.approx(1 / 10)
    low, high = found["ci95"]
    assert low == 0 and 0.4 <= high <= 0.8


def test_ties_of_a_dimension_are_verdicts_and_ties_overall_count_for_tau_alone():
    pairs = [pair("t0", "tie", dict.fromkeys(DIMENSIONS, "tie")), pair("t1", "a", {"texture": "tie"})]
    judged = [answers(pairs[0], text("first"), text("first")), answers(pairs[1], text("first", (5, 4)), text("second", (4, 5)))]
    texture = figures(pairs, judged, "texture")
    assert texture["acc_consistent"] == 0.5 and texture["tie_rate"] == 0.5 and texture["n"] == 2
    overall = figures(pairs, judged, "overall")
    assert overall["n"] == 1 and overall["acc_consistent"] == 1 and overall["tau"] == 1 and overall["diff"] == 1
    assert set(all_figures(pairs, judged, {})) == {"overall", *DIMENSIONS}
    assert majority(pairs)["texture"] == 1 and majority(pairs)["overall"] == 0.5


def test_a_judge_that_knows_everything():
    judged = [answers(one, *(write_brief(answer_of(truth)) for truth in both(one))) for one in PAIRS]
    for row in all_figures(PAIRS, judged, {}).values():
        assert row["acc_consistent"] == row["tau"] == row["diff"] == 1 and row["flip_rate"] == 0 and row["p_first"] == 0.5
        assert row["ci95"] == [1, 1]


def both(one):
    return one.shown("ab"), one.shown("ba")


def test_a_judge_that_always_names_the_first_is_exposed():
    found = figures(PAIRS, [answers(one, text("first", (5, 3)), text("first", (5, 3))) for one in PAIRS], "overall")
    assert found["p_first"] == 1 and found["flip_rate"] == 1 and found["acc_consistent"] == 0
    assert found["acc_average"] == 0.5 == majority(PAIRS)["overall"]
    assert found["acc_forward"] == 3 / 5  # which alone looks better than chance


def test_a_judge_that_tosses_a_coin_is_exposed():
    draw = random.Random(0)
    pairs = [pair(f"c{index}", draw.choice("ab")) for index in range(1000)]
    judged = [answers(one, text(draw.choice(("first", "second"))), text(draw.choice(("first", "second")))) for one in pairs]
    found = figures(pairs, judged, "overall")
    assert found["acc_average"] == pytest.approx(0.5, abs=0.04) and found["acc_consistent"] == pytest.approx(0.25, abs=0.04)
    assert found["flip_rate"] == pytest.approx(0.5, abs=0.05) and found["p_first"] == pytest.approx(0.5, abs=0.04)
    assert found["ci95"][1] < majority(pairs)["overall"]


def test_intervals_draw_whole_people():
    """Forty pairs of two people tell no more than two pairs."""
    alone = [pair(f"i{index}", "a") for index in range(40)]
    shared = [pair(f"i{index}", "a", identity=f"person-{index % 2}") for index in range(40)]
    judged = [says(one, "a" if index % 2 else "b", "a" if index % 2 else "b") for index, one in enumerate(alone)]
    narrow, wide = (figures(pairs, judged, "overall")["ci95"] for pairs in (alone, shared))
    assert wide == [0, 1] and 0.3 < narrow[0] < 0.5 < narrow[1] < 0.7


def test_the_gain_is_paired():
    before = [says(one, "b", "b") for one in PAIRS]
    after = [says(one, one.overall, one.overall) for one in PAIRS]
    change = gain(PAIRS, before, after)
    assert change["overall"] == pytest.approx(3 / 5)  # the two b were right before
    assert change["ci95"][0] >= 0 and gain(PAIRS, after, after) == {"overall": 0, "ci95": [0, 0]}


def test_tie_thresholds_are_fitted_where_they_are_told_to_be():
    pairs = [pair("v0", "tie", {"clarity": "tie"}), pair("v1", "a", {"clarity": "tie"}), pair("v2", "b", {"clarity": "b"})]
    scores = [(4, 3), (5, 4), (1, 5)]
    judged = [answers(one, text("first", score), text("second", score[::-1])) for one, score in zip(pairs, scores, strict=True)]
    thresholds = fit_thresholds(pairs, judged)
    assert 1 <= thresholds["clarity"] < 4  # differences of 1 are ties there
    assert figures(pairs, judged, "clarity", thresholds["clarity"])["tau"] == 1
    assert figures(pairs, judged, "clarity", 0.0)["tau"] == pytest.approx(1 / 3)
    assert fit_thresholds([], []) == dict.fromkeys(("overall", *DIMENSIONS), 0.0)


def test_the_worst_group_is_named_and_tiny_groups_never_are():
    pairs = [pair(f"g{index}", "a", age_band="60-74" if index < 6 else "18-29", gender="woman") for index in range(12)]
    pairs.append(pair("g12", "a", age_band="child"))
    judged = [says(one, "b" if index < 3 or one.groups["age_band"] == "child" else "a", "a") for index, one in enumerate(pairs)]
    found = by_group(pairs, judged)
    assert found["age_band"]["worst"] == "60-74" and found["age_band"]["groups"]["60-74"]["acc_consistent"] == 0.5
    assert found["age_band"]["groups"]["child"]["acc_consistent"] == 0 and found["gender"]["worst"] == "woman"


def test_calibration_goes_from_small_to_large_differences():
    rows = calibration(PAIRS[:4], JUDGED[:4], bins=2)
    assert [row["difference"] for row in rows] == sorted(row["difference"] for row in rows) and sum(row["n"] for row in rows) == 2


def test_answers_are_never_laid_beside_another_pair():
    with pytest.raises(ValueError, match="p1"):
        figures(PAIRS, JUDGED[1:] + JUDGED[:1], "overall")
