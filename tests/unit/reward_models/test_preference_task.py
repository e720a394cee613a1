"""The judge's task: bounds, no inversion, symmetry, and what a perfect answer earns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portraitkit.errors import DataError
from preference_data.contract import Answer, write_answer, write_brief
from preference_data.schema import DIMENSIONS
from reward_models.judge.preference_task import (
    TASK,
    Preference,
    answer_of,
    columns_of,
    metrics,
    preference_of,
    read_truth,
    score,
    verdicts_shown,
)

MODES = ("paper", "fixed")
PAIRS = st.tuples(st.integers(1, 5), st.integers(1, 5))
SCORES = st.fixed_dictionaries({name: PAIRS for name in DIMENSIONS})
ANSWERS = st.builds(Answer, SCORES, st.sampled_from(["first", "second"]), st.just("it is"))
VERDICTS = st.sampled_from(["first", "second", "tie"])
JUDGED = st.dictionaries(st.sampled_from(DIMENSIONS), VERDICTS)
TRUTHS = st.builds(Preference, st.one_of(st.none(), VERDICTS), JUDGED, st.one_of(st.none(), SCORES))
SPOILED = st.sampled_from(
    [
        lambda text: "",
        lambda text: text + " done",
        lambda text: "Sure: " + text,
        lambda text: text.replace("<think>", "", 1),
        lambda text: text.replace("</answer>", "", 1),
        lambda text: text + text,
        lambda text: text.replace("<answer>", "<answer>9", 1),
    ]
)
TWO_AGAINST_THREE = {
    "overall": "x",
    **dict(zip(DIMENSIONS, ("x", "x", "y", "y", "y"), strict=True)),
}


OTHER = {"first": "second", "second": "first", "tie": "tie", None: None}


def swapped(answer):
    return Answer({name: (y, x) for name, (x, y) in answer.scores.items()}, OTHER[answer.better], answer.reasoning)


def swapped_truth(truth):
    scores = {name: (y, x) for name, (x, y) in truth.scores.items()} if truth.scores else None
    return Preference(OTHER[truth.overall], {name: OTHER[value] for name, value in truth.verdicts.items()}, scores)


@pytest.mark.parametrize("mode", MODES)
@given(text=st.text(max_size=60), answer=ANSWERS, truth=TRUTHS)
def test_whatever_is_written_stays_in_range(mode, text, answer, truth):
    low, high = TASK.ranges[mode]
    for completion in (text, write_answer(answer), write_brief(answer), f"<think>{text}</think><answer>1</answer>"):
        found = score(completion, truth, mode)
        assert low <= found.reward <= high
        assert found.reward == pytest.approx(sum(value for value in found.parts.values() if value is not None))


@pytest.mark.parametrize("mode", MODES)
@given(spoil=SPOILED, worst=ANSWERS, truth=TRUTHS)
def test_no_malformed_answer_beats_a_well_formed_one(mode, spoil, worst, truth):
    for perfect in (TASK.perfect(truth), write_answer(answer_of(truth))):
        malformed = score(spoil(perfect), truth, mode)
        assert malformed.reward == 0 and malformed.parsed is None
        assert malformed.reward < score(write_brief(worst), truth, mode).reward


@pytest.mark.parametrize("mode", MODES)
@given(truth=TRUTHS)
def test_a_perfect_answer_earns_all_that_coherence_allows(mode, truth):
    best = 2.0 if mode == "paper" else 1.0 + bool(truth.verdicts)
    best += truth.overall in ("first", "second")
    assert TASK.most is not None and TASK.most(truth, mode) == best
    answer = answer_of(truth)
    if not answer.coherent:
        best -= 1.0 if mode == "paper" else 0.5
        assert truth.overall in ("first", "second")
        if truth.scores is None:  # no dimension speaks for the winner or is open, and one speaks against
            assert len(truth.verdicts) == len(DIMENSIONS)
            assert truth.overall not in truth.verdicts.values() and {"first", "second"} & set(truth.verdicts.values())
    for text in (TASK.perfect(truth), write_answer(answer_of(truth))):
        assert score(text, truth, mode).reward == pytest.approx(best)
    assert all(verdicts_shown(answer)[name] == verdict for name, verdict in truth.verdicts.items())


@given(scores=SCORES)
def test_true_scores_are_kept_and_reach_the_maximum(scores):
    sums = [sum(both[side] for both in scores.values()) for side in (0, 1)]
    if sums[0] == sums[1]:
        return
    verdicts = {name: "tie" if x == y else "x" if x > y else "y" for name, (x, y) in scores.items()}
    columns = {"verdict": {"overall": "x" if sums[0] > sums[1] else "y", **verdicts}, "scores": {k: list(v) for k, v in scores.items()}}
    truth = read_truth(columns)
    assert answer_of(truth).scores == scores
    assert score(TASK.perfect(truth), truth, "paper").reward == score(TASK.perfect(truth), truth, "fixed").reward == 3


@pytest.mark.parametrize("mode", MODES)
@given(answer=ANSWERS, truth=TRUTHS)
def test_the_order_of_the_candidates_and_the_form_do_not_matter(mode, answer, truth):
    rewards = {
        round(score(write(shown), known, mode).reward, 9)
        for shown, known in ((answer, truth), (swapped(answer), swapped_truth(truth)))
        for write in (write_answer, write_brief)
    }
    assert len(rewards) == 1


def test_totals_by_hand():
    truth = read_truth({"verdict": TWO_AGAINST_THREE})
    agreeing = Answer({name: (5, 3) for name in DIMENSIONS}, "first", "")
    assert score(write_brief(agreeing), truth, "fixed").parts == {"form": 0.5, "coherence": 0.5, "overall": 1.0, "dimensions": 0.4}
    assert score(write_brief(agreeing), truth, "paper").reward == 3
    against_itself = Answer({name: (5, 3) for name in DIMENSIONS}, "second", "")
    assert score(write_brief(against_itself), truth, "fixed").parts == {"form": 0.5, "coherence": 0.0, "overall": 0.0, "dimensions": 0.4}
    assert score(write_brief(against_itself), truth, "paper").reward == 1
    assert score("x", truth, "fixed").parts == {"form": 0.0, "coherence": 0.0, "overall": 0.0, "dimensions": 0.0}
    assert score(TASK.perfect(truth), truth, "fixed").reward == 3  # two dimensions outweigh three: the scores lie further apart


def test_what_is_not_judged_is_none():
    undecided = read_truth({"verdict": {"overall": "tie"}})
    parts = score(write_brief(Answer({name: (3, 3) for name in DIMENSIONS}, "second", "")), undecided, "fixed").parts
    assert parts == {"form": 0.5, "coherence": 0.5, "overall": None, "dimensions": None}
    only_texture = read_truth({"verdict": {"texture": "y"}})
    assert only_texture.overall is None and score(TASK.perfect(only_texture), only_texture, "fixed").reward == 2


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({}, "verdict"),
        ({"verdict": {}}, "verdict"),
        ({"verdict": "x"}, "verdict"),
        ({"verdict": {"beauty": "x"}}, "beauty"),
        ({"verdict": {"overall": "a"}}, "x, y or tie"),
        ({"verdict": {"overall": ["x"]}}, "x, y or tie"),
        ({"verdict": {"overall": "x"}, "scores": {"texture": [1, 2]}}, "scores"),
        ({"verdict": {"overall": "x"}, "scores": dict.fromkeys(DIMENSIONS, 3)}, "scores"),
        ({"verdict": {"overall": "x"}, "scores": dict.fromkeys(DIMENSIONS, [1, 6])}, "scores"),
        ({"verdict": {"overall": "x"}, "scores": dict.fromkeys(DIMENSIONS, [1, 2, 3])}, "scores"),
        ({"verdict": {"overall": "x"}, "scores": dict.fromkeys(DIMENSIONS, [True, 2.0])}, "scores"),
    ],
)
def test_rows_that_break_the_schema(columns, word):
    with pytest.raises(DataError, match=word):
        read_truth(columns)


def test_swapped_columns_say_the_same_of_the_other_order():
    scores = {name: (5, 2) for name in DIMENSIONS}
    verdicts = dict.fromkeys(DIMENSIONS, "a")
    straight, turned = (read_truth(columns_of(preference_of("a", verdicts, scores, order))) for order in ("ab", "ba"))
    assert straight.overall == "first" and straight.exchanged() == turned and turned == swapped_truth(straight)


def test_the_embedded_rows_show_either_candidate_first():
    made = [TASK.make_row("train", seed) for seed in (0, 1)] if TASK.make_row else []
    assert [len(row["images"]) for row in made] == [2, 2] and {tuple(picture.shape) for row in made for picture in row["images"]} == {
        (3, 192, 96)
    }
    for row in made:
        truth = read_truth(row)
        assert score(TASK.perfect(truth), truth, "fixed").reward == 3


def test_metrics_count_the_unreadable_as_wrong():
    truth = read_truth({"verdict": TWO_AGAINST_THREE})
    found = metrics([TASK.perfect(truth), "x", write_brief(Answer({name: (1, 5) for name in DIMENSIONS}, "second", ""))], [truth] * 3)
    assert found["readable"] == pytest.approx(2 / 3) and found["overall_accuracy"] == pytest.approx(1 / 3)
    assert found[f"{DIMENSIONS[0]}_accuracy"] == pytest.approx(1 / 3) and found[f"{DIMENSIONS[4]}_accuracy"] == pytest.approx(2 / 3)
    undecided = read_truth({"verdict": {"overall": "tie"}})
    assert "overall_accuracy" not in metrics([TASK.perfect(undecided)], [undecided])
