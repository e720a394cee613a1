"""Emotion rewards: F1 of action units, the emotion, the structure."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vlm.tasks.emotion import TASK, Expression, best_expressions, emotion_task, f1, published_form
from portraitkit.errors import ConfigError, DataError
from preference_data.emotion_rows import ACTION_UNITS, AU_LISTS, EMOTIONS

SAD = Expression(frozenset({1, 4, 15}), "sadness")
UNITS = st.frozensets(st.sampled_from(sorted(ACTION_UNITS)), max_size=6)


def answer(think: str, word: str) -> str:
    return f"<think>{think}</think><answer>{word}</answer>"


@pytest.mark.parametrize(
    ("completion", "truth", "paper", "fixed"),
    [
        (answer("(AU1) (AU4) (AU15)", "sadness"), SAD, 3.0, 3.0),
        (answer("(AU1) (AU4)", "sadness"), SAD, 2.8, 2.8),
        (answer("(AU1) (AU4) (AU15)", "Sadness"), SAD, 2.0, 3.0),  # theirs minds the case
        (answer("(AU12)", "happiness"), SAD, 1.0, 1.0),
        (answer("none", "sadness"), SAD, 2.0, 2.0),
        ("<think>(AU1) (AU4) (AU15)</think><answer>sadness</answer> done", SAD, 2.0, 0.0),
        ("sadness (AU1)", SAD, 0.0, 0.0),
        (answer("(AU1)", "fear"), Expression(frozenset({1}), None), 2.5, 2.0),  # no label: .5 there, not scored here
        (answer("calm", "neutral"), Expression(frozenset(), "neutral"), 2.0, 3.0),  # nothing to name, nothing named
        (answer("(AU1)", "neutral"), Expression(None, "neutral"), 2.0, 2.0),
        (answer("AU 4, au15 and AU01", "sadness"), SAD, 2.4, 3.0),  # theirs knows AU15, and a unit AU01 that nobody has
        (answer("AU4AU15L LAU1", "sadness"), SAD, 3.0, 2.0),
        (answer("(AU1) (AU4) (AU15) (AU150)", "sadness"), SAD, 2 + 6 / 7, 3.0),
        ("<THINK>(AU1) (AU4) (AU15)</Think><answer>sadness</answer>", SAD, 2.0, 0.0),
        (answer("", "AU1 AU4 AU15"), SAD, 1.0, 0.0),  # named in the answer: not credited, and no one word
        ("<think></think><answer></answer>", Expression(frozenset(), "neutral"), 1.0, 0.0),  # an empty answer is none
        (answer("(AU1) <think>(AU4) (AU15)", "sadness"), SAD, 3.0, 0.0),  # theirs takes tags within tags
        (answer("(AU1) (AU4) (AU15)", "sadness</answer><answer>fear"), SAD, 2.0, 0.0),  # theirs takes the last answer,
        ("<think>AU4 so <answer>fear</answer> no</think><answer>anger</answer>", Expression(frozenset({4}), "anger"), 3.0, 0.0),
        (answer("AU4", "anger") + " or <answer>fear</answer>", Expression(frozenset({4}), "anger"), 2.0, 0.0),
        ("anger", Expression(frozenset({4}), "anger"), 1.0, 0.0),  # and without tags the whole text
        ("<answer>fear</answer><answer>", Expression(None, "fear"), 1.0, 0.0),
        (answer("(AU1) (AU4) (AU15)", "sadness") + "\n", SAD, 2.0, 3.0),  # and no line break at the end
        ("<think>(AU1) (AU4) (AU15)</think><answer>", SAD, 1.0, 0.0),
        ("<answer>sadness</answer><think>(AU1) (AU4) (AU15)</think>", SAD, 2.0, 0.0),
    ],
)
def test_totals(completion, truth, paper, fixed):
    assert TASK.score(completion, truth, "paper").reward == pytest.approx(paper)
    assert TASK.score(completion, truth, "fixed").reward == pytest.approx(fixed)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "x"]), max_size=9).map("".join))
def test_the_published_form_is_what_their_pattern_matches(text):
    for completion in (text, f"<think>{text}</answer>"):
        pattern = r"<think>.*?</think>\s*<answer>.*?</answer>"  # src/open-r1-multimodal/src/open_r1/grpo_jsonl.py
        assert published_form(completion) == (re.fullmatch(pattern, completion, re.DOTALL) is not None)


def test_what_a_row_does_not_label_is_none():
    score = TASK.score(answer("(AU1)", "fear"), Expression(frozenset({1}), None), "fixed")
    assert score.parts == {"action_units": 1.0, "emotion": None, "format": 1.0}
    assert score.parsed == {"AUs": ["AU1"], "label": "fear"}


def test_the_signed_variant():
    signed = emotion_task(signed=True)
    assert signed.score(answer("none", "sadness"), SAD, "paper").parts["action_units"] == -1
    assert signed.score(answer("(AU1) (AU4)", "sadness"), SAD, "paper").parts["action_units"] == pytest.approx(0.6)
    assert signed.score("garbage", SAD, "fixed").reward == -1


def test_rare_units_count_more_if_asked():
    rare = emotion_task(rarity={1: 900, 4: 900, 15: 100})
    score = {units: rare.score(answer(units, "sadness"), SAD, "fixed").parts["action_units"] for units in ("AU1 AU4", "AU4 AU15", "AU9")}
    assert score == {"AU1 AU4": pytest.approx(4 / 13), "AU4 AU15": pytest.approx(20 / 21), "AU9": 0}
    assert rare.score(answer("AU1 AU4 AU15 AU9", "sadness"), SAD, "fixed").parts["action_units"] == pytest.approx(
        22 / 31
    )  # as rare as AU15
    even = emotion_task(rarity={1: 7, 4: 7, 15: 7}, signed=True)
    assert even.score(answer("AU1 AU4", "sadness"), SAD, "paper").parts["action_units"] == pytest.approx(0.6)
    for counts in ({}, {1: 0}):
        with pytest.raises(ConfigError, match="above 0"):
            emotion_task(rarity=counts)


@given(st.text(max_size=80), UNITS, st.sampled_from([*EMOTIONS, None]), st.booleans())
def test_whatever_is_written_stays_in_range(text, units, emotion, signed):
    task = emotion_task(signed=signed)
    for mode in ("paper", "fixed"):
        for completion in (text, answer(text, "fear"), answer("x", text)):
            score = task.score(completion, Expression(units, emotion), mode)
            assert task.ranges[mode][0] <= score.reward <= task.ranges[mode][1]


@given(UNITS, UNITS, st.sampled_from(EMOTIONS), st.sampled_from(EMOTIONS), st.sampled_from(["{} ok", "ok {}", "<think>{}", "{}</answer>"]))
def test_no_malformed_answer_beats_a_well_formed_one_in_fixed(named, units, word, emotion, spoil):
    truth = Expression(units, emotion)
    well_formed = answer(" ".join(f"AU{unit}" for unit in sorted(named)), word)
    assert TASK.score(spoil.format(TASK.perfect(truth)), truth, "fixed").reward < TASK.score(well_formed, truth, "fixed").reward
    assert TASK.score(TASK.perfect(truth), truth, "fixed").reward == 3


@given(st.lists(st.sampled_from(sorted(ACTION_UNITS)), min_size=1, max_size=6, unique=True), st.randoms())
def test_the_order_of_units_does_not_matter(units, generator):
    truth = Expression(frozenset(units[:3]), "fear")
    rewards = {
        TASK.score(answer(" ".join(f"AU{u}" for u in order), "fear"), truth, "fixed").reward
        for order in (units, generator.sample(units, len(units)))
    }
    assert len(rewards) == 1


def test_the_prompt_defines_the_thirty_units():
    assert len(ACTION_UNITS) == 30
    assert all(f"AU{number} {name}" in TASK.prompt for number, name in ACTION_UNITS.items())


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"AUs": "AU1"},
        {"AUs": ["AU3"]},
        {"AUs": ["1"]},
        {"AUs": [1]},
        {"AUs": ["au4"]},
        {"AUs": [], "labels": ["sadly"]},
        {"labels": ["fear", "anger"]},
        {"labels": "fear"},
    ],
)
def test_rows_that_break_the_schema_are_refused(row):
    with pytest.raises(DataError):
        TASK.read_truth(row)


@pytest.mark.parametrize(
    ("row", "truth"),
    [
        ({"labels": ["Angry"]}, Expression(None, "anger")),
        ({"AUs": ["AU04"], "labels": None}, Expression(frozenset({4}), None)),
        ({"AUs": [], "labels": ["happy"]}, Expression(frozenset(), "happiness")),
        ({"dataset": "fer2013", "AUs": [], "labels": ["anger"]}, Expression(None, "anger")),
        ({"dataset": "RAF-DB", "AUs": ["AU4"], "labels": ["anger"]}, Expression(frozenset({4}), "anger")),
        ({"dataset": "DISFA", "AUs": [], "labels": []}, Expression(frozenset(), None, frozenset(ACTION_UNITS) - {*AU_LISTS["disfa"]})),
    ],
)
def test_rows_are_read_as_the_data_format_says(row, truth):
    """By the parser of `preference_data.emotion_rows`: nouns, and no empty list of units where the data set labels none."""
    assert TASK.read_truth(row) == truth


def test_naming_no_unit_is_not_paid_where_none_is_labelled():
    truth = TASK.read_truth({"dataset": "fer2013", "AUs": [], "labels": ["anger"]})
    assert TASK.score(answer("", "anger"), truth, "fixed").reward == 2


@given(UNITS, st.sampled_from([*EMOTIONS, None]), st.booleans(), st.sampled_from(["paper", "fixed"]))
def test_the_perfect_answer_earns_the_most_that_a_row_allows(units, emotion, labelled, mode):
    truth = Expression(units if labelled else None, emotion)
    assert TASK.most is not None and TASK.score(TASK.perfect(truth), truth, mode).reward == TASK.most(truth, mode)


@pytest.mark.parametrize(
    ("named", "truth", "value"),
    [
        (set(), set(), 1),
        ({1}, set(), 0),
        (set(), {1}, 0),
        ({1}, {1}, 1),
        ({1, 15}, {1, 4}, 2 * 1 / (1 + 5 + 1 + 1)),  # weights 1, 1 and 5
        ({15, "AU04"}, {15}, 2 * 5 / (5 + 5 + 5)),  # what no list has counts as the rarest
        ({9}, {9, 4}, 2 * 5 / (5 + 5 + 1)),
    ],
)
def test_f1_of_units_that_count_by_their_rarity(named, truth, value):
    assert f1(frozenset(named), frozenset(truth), {1: 1 / 10, 4: 1 / 10, 15: 1 / 2}) == pytest.approx(value)
    assert f1(frozenset(named), frozenset(truth), {1: 1 / 20, 4: 1 / 20, 15: 1 / 4}) == pytest.approx(value), "in any unit"


@pytest.mark.parametrize(
    ("completion", "mode", "parsed"),
    [
        (answer("AU15 AU04 AU4", "Fear"), "paper", {"AUs": ["AU4", "AU15", "AU04"], "label": "Fear"}),
        (answer("AU15 AU04", "Fear"), "fixed", {"AUs": ["AU4", "AU15"], "label": "fear"}),
        (answer("none", "fear"), "fixed", {"AUs": [], "label": "fear"}),
        ("<think>AU4</think>", "paper", {"AUs": ["AU4"], "label": "<think>AU4</think>"}),
        ("<think>AU4</think><answer> </answer>", "paper", {"AUs": ["AU4"], "label": ""}),
        ("<think></think><answer> </answer>", "paper", None),
        ("AU4 fear", "fixed", None),
    ],
)
def test_what_is_read_is_said(completion, mode, parsed):
    assert TASK.score(completion, SAD, mode).parsed == parsed


def test_a_row_is_whole_where_all_that_is_scored_is_labelled():
    known = frozenset({1})
    assert TASK.whole is not None
    labels = [(known, "fear"), (frozenset(), "fear"), (None, "fear"), (known, None), (known, "fear", frozenset({4}))]
    assert [TASK.whole(Expression(*label)) for label in labels] == [True, True, False, False, False]
    assert TASK.ranges == {"paper": (0, 3), "fixed": (0, 3)} and emotion_task(signed=True).ranges == {"paper": (-1, 3), "fixed": (-1, 3)}


def test_the_best_constants_are_one_for_each_number_of_units():
    found = best_expressions([SAD, Expression(frozenset({4}), "fear"), Expression(frozenset({4, 15}), "fear"), Expression(None, None)])
    assert [len(one.units) for one in found] == list(range(31)) and {one.emotion for one in found} == {"fear"}
    assert [found[count].units for count in (1, 2, 3)] == [{4}, {4, 15}, {1, 4, 15}]
    assert {one.emotion for one in best_expressions([Expression(None, None)])} == {None}
    assert TASK.most is not None
    most = [TASK.most(Expression(*label), mode) for label in ((None, None), (frozenset(), None)) for mode in ("paper", "fixed")]
    assert most == [1.5, 1, 1.5, 2] and TASK.most(SAD, "paper") == TASK.most(SAD, "fixed") == 3
