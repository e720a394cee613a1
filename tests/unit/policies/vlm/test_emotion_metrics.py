"""Figures of facial emotion analysis, by hand-counted examples and by the definitions."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vlm.tasks import emotion_metrics as metrics
from policies.vlm.tasks.emotion import TASK, Expression
from portraitkit.errors import ConfigError
from preference_data.emotion_rows import ACTION_UNITS, AU_LISTS, DEFINITIONS, EMOTIONS, SYNONYMS, normalise_label

UNITS = st.frozensets(st.sampled_from(sorted(ACTION_UNITS)), max_size=5)


def answer(units, emotion):
    return f"<think>{' '.join(f'(AU{unit})' for unit in units)}</think><answer>{emotion}</answer>"


TRUTHS = [
    Expression(frozenset({1, 4}), "sadness"),
    Expression(frozenset({4}), "anger"),
    Expression(frozenset({12}), "happiness"),
    Expression(frozenset({12}), None),
    Expression(None, "fear"),
]
COMPLETIONS = [answer([1, 4], "sadness"), answer([4, 12], "Anger"), "no tags AU12", answer([12], "fear"), answer([9], "joyful")]


def test_hand_counted_figures():
    found = metrics.headline(COMPLETIONS, TRUTHS)
    # AU1: 1 hit; AU4: 2 hits; AU12: 1 hit, 1 false alarm, 1 miss -> 1/2. The fifth row labels no units, so AU9 counts nowhere.
    assert found["au_macro_f1"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["au_micro_f1"] == pytest.approx(8 / 10)
    assert found["emotion_accuracy"] == pytest.approx(2 / 4)
    assert found["unreadable"] == pytest.approx(1 / 5)
    assert TASK.metrics is not None and TASK.metrics(COMPLETIONS, TRUTHS) == found


def test_a_list_decides_which_units_count():
    found = metrics.report(COMPLETIONS, TRUTHS, units=(4, 25))
    assert found["au_list"] == ["AU4", "AU25"]
    assert found["action_units"]["micro_f1"] == 1 and found["action_units"]["units_with_positives"] == 1
    assert found["action_units"]["units"]["AU25"] == {"f1": None, "hits": 0, "false_alarms": 0, "misses": 0}
    assert metrics.au_list("au1, 2") == (1, 2)
    with pytest.raises(ConfigError, match="did you mean 'disfa'"):
        metrics.au_list("dsfa")


def test_published_lists():
    assert len(AU_LISTS["all"]) == 30 and len(AU_LISTS["disfa"]) == 12
    assert len(AU_LISTS["bp4d"]) == len(AU_LISTS["raf-au"]) == 27 and len(AU_LISTS["faba"]) == 26
    assert AU_LISTS["emola-disfa"] == (1, 2, 4, 6, 9, 12, 25, 26)
    assert AU_LISTS["emola-bp4d"] == (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
    assert metrics.rege(0.645, 31.7) == pytest.approx(96.2)  # EmoLA's own row


@pytest.mark.parametrize(
    ("text", "units", "emotion"),
    [
        ("Well: <think>(AU12)</think> so <answer> happiness </answer> done", {12}, "happiness"),
        ("<think>(AU12)</think><answer>Happiness, anger</answer>", {12}, "Happiness"),
        ("<think>(AU12)</think><answer>；fear，anger</answer><answer>anger</answer>", {12}, "fear"),
        ("sadness with AU4 and LAU10L", {4, 10}, "sadness"),
        ("<THINK>AU4</THINK> au6", {4}, "<THINK>AU4</THINK>"),
        ("<think>AU4AU12 AU07 AU 9 AU123 au1 AU4٣</think><answer></answer>", {4, 12}, ""),
        ("", set(), ""),
    ],
)
def test_paper_mode_reads_as_the_sources_evaluation_does(text, units, emotion):
    """First word, with its case, the whole text where there are no tags: extract_au_pred_think and extract_label_pred_answer."""
    assert not metrics.read_answer(text).readable and metrics.read_answer(text).units == frozenset()
    read = metrics.read_answer(text, "paper")
    assert (read.units, read.emotion) == (units, emotion)


def test_confusion_has_a_column_for_what_is_no_emotion():
    answers = [metrics.read_answer(text) for text in COMPLETIONS]
    table = metrics.confusion(answers, TRUTHS)
    assert list(table) == ["anger", "fear", "happiness", "sadness"]
    assert table["fear"]["other"] == 1 and table["happiness"]["other"] == 1 and table["anger"]["anger"] == 1
    assert sum(sum(row.values()) for row in table.values()) == 4


def test_the_report_with_descriptions_and_groups():
    texts = ["(AU1) (AU4)", "", "nothing alike", "", ""]
    found = metrics.report(COMPLETIONS, TRUTHS, descriptions=texts, groups=["a", "a", "b", "b", "c"])
    assert found["rouge_l"]["rows"] == 2 and found["rouge_l"]["per_cent"] == pytest.approx(50)
    assert found["rege"]["emotions"] == pytest.approx(50 + 50)
    assert found["groups"]["a"]["emotions"]["accuracy"] == 1 and found["groups"]["c"]["action_units"]["macro_f1"] is None
    assert sum(group["rows"] for group in found["groups"].values()) == 5
    low, high = found["action_units"]["micro_f1_ci95"]
    assert 0 <= low <= found["action_units"]["micro_f1"] <= high <= 1
    assert metrics.report(["x"], [TRUTHS[0]])["emotions"]["accuracy_ci95"] is None
    assert metrics.report(COMPLETIONS[:2], TRUTHS[:2])["emotions"]["accuracy_ci95"] == [1, 1], "two rows have an interval"


@pytest.mark.parametrize("text", ["<think>AU4", "AU4</think>", "AU4"])
def test_the_published_reward_reads_units_between_two_tags_only(text):
    assert metrics.read_rewarded(text)[0] == frozenset()
    assert metrics.read_rewarded("<think>AU4</think>AU5")[0] == {4}


def test_rouge_is_the_longest_common_subsequence():
    # 3 common words in order of 4 and 5: P 3/4, R 3/5.
    assert metrics.rouge_l(["brows go up fast"], ["the brows then go up"]) == pytest.approx(100 * 2 * 0.75 * 0.6 / 1.35)


@given(st.lists(st.tuples(UNITS, UNITS), min_size=1, max_size=8))
def test_f1_is_that_of_precision_and_recall(pairs):
    truths = [Expression(true, None) for _, true in pairs]
    counts = metrics.count_units([metrics.read_answer(answer(said, "fear")) for said, _ in pairs], truths, AU_LISTS["all"]).sum(0)

    def by_hand(said, true):  # pairs (row, unit)
        if not true:
            return None
        precision, recall = len(said & true) / max(len(said), 1), len(said & true) / len(true)
        return 2 * precision * recall / (precision + recall) if said & true else 0.0

    named = {(row, unit) for row, (units, _) in enumerate(pairs) for unit in units}
    wanted = {(row, unit) for row, (_, units) in enumerate(pairs) for unit in units}
    each = [by_hand({i for i in named if i[1] == unit}, {i for i in wanted if i[1] == unit}) for unit in AU_LISTS["all"]]
    each = [value for value in each if value is not None]
    if not wanted:
        assert math.isnan(metrics.micro_f1(counts)) and math.isnan(metrics.macro_f1(counts))
    else:
        assert metrics.micro_f1(counts) == pytest.approx(by_hand(named, wanted))
        assert metrics.macro_f1(counts) == pytest.approx(sum(each) / len(each))


@given(st.lists(st.tuples(UNITS, st.sampled_from(EMOTIONS)), min_size=1, max_size=6))
def test_perfect_answers_are_perfect(rows):
    truths = [Expression(units, emotion) for units, emotion in rows]
    found = metrics.headline([TASK.perfect(truth) for truth in truths], truths)
    assert found["emotion_accuracy"] == 1 and found["unreadable"] == 0
    assert found["au_micro_f1"] == 1 or math.isnan(found["au_micro_f1"])


def test_labels_become_nouns():
    assert [normalise_label(word) for word in ("Angry", " happy ", "SAD", "Neutral", "surprise")] == [
        "anger",
        "happiness",
        "sadness",
        "neutral",
        "surprise",
    ]
    assert set(SYNONYMS) == set(EMOTIONS)


def test_the_prompt_says_what_each_unit_looks_like():
    assert all(f"AU{number} {name} ({seen})" in TASK.prompt for number, (name, seen) in DEFINITIONS.items())
    assert len({seen for _, seen in DEFINITIONS.values()}) == 30


# ---- values by hand


def test_intervals_are_the_percentiles_of_a_thousand_bootstraps_of_rows():
    draw = random.Random(0)
    rows = [({unit for unit in (1, 4, 12) if draw.random() < 0.5}, {unit for unit in (1, 4) if draw.random() < 0.6}) for _ in range(23)]
    right = [draw.random() < 0.6 for _ in rows]
    texts = [answer(sorted(said), "fear" if ok else "anger") for (said, _), ok in zip(rows, right, strict=True)]
    truths = [Expression(frozenset(true), "fear") for _, true in rows]
    counts = np.array([[[u in s and u in t, u in s and u not in t, u in t and u not in s] for u in (1, 4, 12)] for s, t in rows], int)

    def ends(statistic, seed):
        generator = np.random.default_rng(seed)
        values = [statistic(times) for _ in range(10) for times in generator.multinomial(23, np.full(23, 1 / 23), size=100)]
        return pytest.approx(np.quantile(values, [0.025, 0.975]).tolist())

    def f1(times, units):
        hits, alarms, misses = (times @ counts.reshape(23, -1)).reshape(3, 3)[units].sum(0)
        return 2 * hits / (2 * hits + alarms + misses)

    for seed in (0, 1):
        found = metrics.report(texts, truths) if seed == 0 else metrics.report(texts, truths, seed=1)
        assert found["action_units"]["micro_f1_ci95"] == ends(lambda times: f1(times, [0, 1, 2]), seed)
        assert found["action_units"]["macro_f1_ci95"] == ends(lambda times: (f1(times, [0]) + f1(times, [1])) / 2, seed)
        assert found["emotions"]["accuracy_ci95"] == ends(lambda times: times @ right / 23, seed)
    assert found["action_units"]["micro_f1"] == pytest.approx(f1(np.ones(23), [0, 1, 2])) and found["action_units"]["rows"] == 23
    assert found["action_units"]["macro_f1"] == pytest.approx((f1(np.ones(23), [0]) + f1(np.ones(23), [1])) / 2)
    assert found["action_units"]["units_with_positives"] == 2 and found["emotions"]["accuracy"] == pytest.approx(sum(right) / 23)
    hits, alarms, misses = counts.sum(0)[1].tolist()
    assert found["action_units"]["units"]["AU4"] == {"f1": f1(np.ones(23), [1]), "hits": hits, "false_alarms": alarms, "misses": misses}
    assert found["action_units"]["units"]["AU12"]["f1"] is None and found["action_units"]["units"]["AU12"]["false_alarms"] > 0


def test_figures_of_nothing_are_none_and_of_one_row_have_no_interval():
    nothing = metrics.report([], [])
    assert nothing["rows"] == nothing["emotions"]["rows"] == nothing["action_units"]["rows"] == 0 and nothing["mode"] == "fixed"
    assert nothing["unreadable"] is nothing["emotions"]["accuracy"] is nothing["action_units"]["macro_f1"] is None
    assert nothing["emotions"]["accuracy_ci95"] is None and nothing["emotions"]["confusion"] == {} and "groups" not in nothing
    unlabelled = metrics.report([answer([1], "fear")] * 3, [Expression(None, "fear")] * 3, descriptions=["", " ", ""])
    assert "rouge_l" not in unlabelled and unlabelled["action_units"]["micro_f1_ci95"] is None
    told = metrics.report([answer([1], "fear")] * 3, [Expression(None, "fear")] * 3, descriptions=["", "(AU1)", ""])
    assert told["rouge_l"]["rows"] == 1 and told["rouge_l"]["per_cent"] == 100 and told["rege"] == {"action_units": None, "emotions": 200}
    found = metrics.headline([answer([], "fear")], [Expression(None, None)])
    assert found["unreadable"] == 0 and all(math.isnan(found[name]) for name in ("au_macro_f1", "au_micro_f1", "emotion_accuracy"))
    bare = metrics.headline([answer([1], "fear")], [Expression(frozenset(), "fear")])
    assert math.isnan(bare["au_micro_f1"]) and math.isnan(bare["au_macro_f1"]) and bare["emotion_accuracy"] == 1


def test_a_unit_that_nobody_coded_is_neither_right_nor_wrong():
    truths = [Expression(frozenset({1}), None, frozenset({4})), Expression(frozenset({1}), None)]
    counts = metrics.count_units([metrics.read_answer(answer([4], "fear"))] * 2, truths, (1, 4))
    assert counts.tolist() == [[[0, 0], [0, 0], [1, 0]], [[0, 0], [0, 1], [1, 0]]]


def test_rouge_takes_stems_and_the_mean_over_rows():
    assert metrics.rouge_l(["raised brows", "x"], ["raises brows", "y"]) == pytest.approx(50)


@pytest.mark.parametrize(("name", "units"), [("disfa", AU_LISTS["disfa"]), ("99,AU1 ,1", (99, 1)), (" au07", (7,))])
def test_a_list_of_units_is_a_name_or_numbers_from_1_to_99(name, units):
    assert metrics.au_list(name) == units
    for wrong in ("0", "100", "1,", "AU", "1;2", "-1", ""):
        with pytest.raises(ConfigError, match="use all, .* or numbers such as 1,2,4"):
            metrics.au_list(wrong)


def test_what_paper_mode_reads_beside_units_and_emotion():
    read = metrics.read_answer("<think> (AU1) \n</think><answer>fear</answer>", "paper")
    assert read == metrics.Answer(frozenset({1}), "fear", "(AU1)", True)
    assert metrics.read_answer("AU1 fear", "paper") == metrics.Answer(frozenset({1}), "AU1", "", False)
    assert metrics.read_answer("<think> (AU01) au 12</think> <answer> FEAR </answer>\n") == metrics.Answer(
        frozenset({1, 12}), "fear", "(AU01) au 12", True
    )
    assert metrics.read_answer("fear") == metrics.Answer(frozenset(), "", "", False)


def test_each_answer_needs_its_truth():
    answers, texts = [metrics.read_answer(text) for text in COMPLETIONS[:2]], ["", "x"]
    for refused in (
        lambda: metrics.count_units(answers, TRUTHS[:1], (1,)),
        lambda: metrics.confusion(answers, TRUTHS[:1]),
        lambda: metrics.rouge_l(texts, texts[:1]),
        lambda: metrics.report(COMPLETIONS[:1], TRUTHS[:1], descriptions=texts),
    ):
        with pytest.raises(ValueError, match="zip"):
            refused()
