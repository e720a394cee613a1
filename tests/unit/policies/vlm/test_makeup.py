"""Makeup rewards: the published figures and faults in `paper`, their repair in `fixed`."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vlm.tasks.makeup import LIPS, TASK, read_look
from policies.vlm.tasks.makeup_scores import color_score, hex_to_lab
from portraitkit.errors import DataError

COLORS = st.integers(0, 0xFFFFFF).map(lambda value: f"#{value:06X}")
ITEMS = st.lists(st.fixed_dictionaries({"shape": st.sampled_from(["lip", "blush", "shadow"]), "color": COLORS}), min_size=1, max_size=3)
TRUTH = [{"shape": "LIP_FULL_BASIC", "color": "#B03050"}, {"shape": "BLUSHER_CENTER_WIDE_BASIC", "color": "#E8909C"}]


def tagged(value) -> str:
    return f"<answer>{value if isinstance(value, str) else json.dumps(value)}</answer>"


@pytest.mark.parametrize(
    ("one", "two", "score"), [("#DC3813", "#D63027", 0.8906), ("#F07749", "#CE644E", 0.8313), ("#511515", "#A06B58", 0.6547)]
)
def test_published_colour_scores(one, two, score):
    assert color_score(one, two) == pytest.approx(score, abs=1e-4)


def test_colours_further_apart_than_100_earn_nothing():
    (l1, a1, b1), (l2, a2, b2) = hex_to_lab("#0000FF"), hex_to_lab("#00FF00")
    assert ((l1 - l2) ** 2 + (a1 - a2) ** 2 + (b1 - b2) ** 2) ** 0.5 == pytest.approx(258.7, abs=0.05)
    assert color_score("#0000FF", "#00FF00") == 0


@pytest.mark.parametrize(
    ("completion", "paper"),
    [
        ("no idea", 0.26),
        (tagged([{"shape": "x", "color": "#00FF00"}]), 0.30),  # valid but wrong
        (tagged("[{broken]"), 0.332),  # broken JSON in good tags outscores it: a proved fault
        (tagged("[{broken"), 0.26),  # their pattern of the tags asks for both brackets
        (tagged(TRUTH), 1.3),
        (tagged(TRUTH[:1]), 0.3 + 2 / 3),
        (tagged([TRUTH[1], TRUTH[0]]), 1.3),
        (tagged([*TRUTH, {"shape": "x", "color": "#00FF00"}]), 0.3 + 4 / 5),
    ],
)
def test_published_totals(completion, paper):
    assert TASK.score(completion, TRUTH, "paper").reward == pytest.approx(paper)


@pytest.mark.parametrize(
    ("completion", "paper"),
    [
        (json.dumps(TRUTH), 0.26),  # without tags nothing is read
        ("Sure: " + tagged(TRUTH), 0.26),
        (tagged(TRUTH) + "\n\n", 1.3),
        ("```json\n" + tagged(TRUTH) + "\n```", 0.3 * (0.06 + 0.3 + 0.4) + 1),
        (tagged([]), 0.332),
        (tagged([TRUTH[0], "x"]), 0.332),
        (tagged([TRUTH[0], {"color": "pink"}]), 0.3 * (0.6 + 0.4 * 0.6) + 0.5),  # one of two right, and both count
        (tagged([{"shape": "LIP_FULL_BASIC", "color": "#GGGGGG"}]), 0.3),  # hex digits are not checked
        (tagged([{"shape": "LIP_FULL_BASIC", "color": "B03050"}]), 0.3 * (0.6 + 0.08) + 2 / 3),  # colours without # are compared
        (tagged([{"shape": "LIP_FULL_BASIC", "color": "##B03050"}]), 0.3 * (0.6 + 0.08) + 2 / 3),
        (tagged([{"shape": "LIP_FULL_BASIC", "color": "# F00 0"}]), 0.3),
        (tagged([{"shape": ["LIP_FULL_BASIC"], "color": "#B03050"}]), 0.3 * (0.6 + 0.08) + 2 / 3),  # S = .7 + .06
        (tagged([{"shape": "LIP_FULL_BASIC", "color": 7}]), 0.3 * (0.6 + 0.08)),
        (tagged("\u00a0" + json.dumps(TRUTH) + "\u2003"), 1.3),
        (tagged(json.dumps(TRUTH)[:-2] + ', "alpha": NaN}]'), 1.3),
        (tagged(json.dumps(TRUTH)[:-2] + ', "alpha": 1' + "0" * 5000 + "}]"), 0.332),  # no int of Python's
        (tagged(TRUTH[0]), 0.26),
        ("``````", 0.26),
        ("```" + tagged(TRUTH) + "```", 0.26),
        (tagged([{}]), 0.204),
        (tagged(TRUTH) * 2, 0.332),
    ],
)
def test_what_the_published_code_pays_for_answers_of_another_form(completion, paper):
    """By hand from utils/reward.py of the source: FormatReward_ and AccuracyReward_."""
    assert TASK.score(completion, TRUTH, "paper").reward == pytest.approx(paper)


@pytest.mark.parametrize(
    ("completion", "paper", "fixed"),
    [
        (tagged({"color": "#D63027"}), 1.1906, 0.8906),
        (tagged({"color": "#DC3813"}), 1.3, 1.0),
        (tagged('\u00a0{"color": "#DC3813", "why": NaN}'), 1.3, 0.0),
        ("```\n" + tagged({"color": "#DC3813"}) + "\n```", 1.228, 0.0),
        (tagged({"color": "#00FFFF"}), 0.3, 0.0),  # further away than 100
        (tagged({"color": "#GGGGGG"}), 0.5, 0.0),
        (tagged({"color": "DC3813"}), 0.404, 0.0),  # no #: nothing is compared
        (tagged({"color": 7}), 0.404, 0.0),
        (tagged({"colour": "#DC3813"}), 0.332, 0.0),
        (tagged('{"color"}'), 0.332, 0.0),
        (tagged('{"color"'), 0.26, 0.0),
        (tagged([{"color": "#DC3813"}]), 0.26, 0.0),
        ('{"color": "#DC3813"}', 0.26, 0.0),
        ("pink", 0.26, 0.0),
    ],
)
def test_published_totals_of_lips(completion, paper, fixed):
    """By hand from utils/reward_lips.py of the source: .3 FormatReward + AccuracyReward; the first two are its documented figures."""
    truth = [{"shape": "LIP_FULL_BASIC", "color": "#DC3813"}]
    assert LIPS.score(completion, truth, "paper").reward == pytest.approx(paper, abs=1e-4)
    assert LIPS.score(completion, truth, "fixed").reward == pytest.approx(fixed, abs=1e-4)
    low, high = LIPS.ranges["paper"]
    assert low <= LIPS.score(completion, truth, "paper").reward <= high


def test_what_was_parsed_is_json():
    wild = '[{"shape": "a", "color": "#B03050", "alpha": 1e400, "alpha": -1e400}]'
    assert TASK.score(tagged(wild), TRUTH, "paper").parsed == [{"shape": "a", "color": "#B03050"}]
    assert TASK.score(tagged(wild), TRUTH, "fixed").parsed is None
    beside = '[{"shape": "a", "color": "#B03050", "alpha": 0.5}]'
    assert TASK.score(tagged(beside), TRUTH, "fixed").parsed == [{"shape": "a", "color": "#B03050"}]


@pytest.mark.parametrize(
    ("junk", "names"),
    [('"color": "#000000", ', "color"), ('"shape": "x", ', "shape"), ('"alpha": 1e999, ', "alpha"), ('"a": {"b": 1, "b": 2}, ', "a")],
)
def test_what_rows_are_refused_for_makes_an_answer_malformed_in_fixed(junk, names):
    """A key given twice and a number beyond all others; `paper` reads them as Python does."""
    look = f'[{{{junk}"shape": "LIP_FULL_BASIC", "color": "#B03050"}}]'
    assert TASK.score(tagged(look), TRUTH[:1], "paper").reward == pytest.approx(1.3)
    assert TASK.score(tagged(look), TRUTH[:1], "fixed").reward == pytest.approx(0.09) and read_look(tagged(look)) is None
    lips = f'{{{junk}"color": "#B03050"}}'
    assert LIPS.score(tagged(lips), TRUTH, "paper").reward == pytest.approx(1.3)
    if names != "shape":
        assert LIPS.score(tagged(lips), TRUTH, "fixed").reward == 0


def test_one_colour_matches_what_it_should_not_in_paper_and_not_in_fixed():
    """The right shape matches up to dE 57: F1 says 1 where the colour is far off."""
    truth = [{"shape": "LIP_FULL_BASIC", "color": "#F07749"}]
    far = tagged([{"shape": "LIP_FULL_BASIC", "color": "#B03050"}])
    assert color_score("#B03050", "#F07749") < 0.7
    assert TASK.score(far, truth, "paper").reward == pytest.approx(1.3)
    assert TASK.score(far, truth, "fixed").reward < 1.1


@pytest.mark.parametrize(
    "completion",
    [
        "no idea",
        tagged("[{broken"),
        json.dumps(TRUTH),
        tagged(TRUTH) + " as asked",
        tagged([*TRUTH, {"shape": "lip"}]),
        tagged([{"shape": "LIP_FULL_BASIC", "color": "#B0305G"}]),
        tagged([{"shape": "LIP_FULL_BASIC", "color": "B03050"}]),
        "[]",
        tagged("[[]]"),
        "52 texture 5274.4 %",
        tagged(TRUTH * 2),
        tagged(TRUTH[0]),
        tagged("NaN"),
        tagged("[" * 100_000),
        tagged(TRUTH) * 2,
    ],
)
def test_malformed_answers_rank_below_every_well_formed_one_in_fixed(completion):
    worst = TASK.score(tagged([{"shape": "x", "color": "#00FF00"}]), [{"shape": "y", "color": "#0000FF"}], "fixed").reward
    assert TASK.score(completion, TRUTH, "fixed").reward < 0.3 <= worst


@given(ITEMS, ITEMS, st.randoms())
def test_order_does_not_matter_and_rewards_stay_in_range(items, truth, generator: random.Random):
    shuffled = generator.sample(items, len(items))
    for mode in ("paper", "fixed"):
        score = TASK.score(tagged(items), truth, mode)
        assert TASK.ranges[mode][0] <= score.reward <= TASK.ranges[mode][1] + 1e-9
        if mode == "fixed":
            assert TASK.score(tagged(shuffled), truth, mode).reward == pytest.approx(score.reward)
            assert score.reward >= 0.3
    assert TASK.score(TASK.perfect(truth), truth, "fixed").reward == pytest.approx(1.3)


@given(st.text(max_size=60), ITEMS)
def test_whatever_is_written_stays_in_range(text, truth):
    for task in (TASK, LIPS):
        for mode in ("paper", "fixed"):
            low, high = task.ranges[mode]
            for completion in (text, tagged(text)):
                assert low <= task.score(completion, truth, mode).reward <= high


@given(COLORS, COLORS, COLORS)
def test_lips_rise_as_the_colour_comes_nearer(one, two, truth):
    wanted = [{"shape": "LIP_FULL_BASIC", "color": truth}]
    near, far = sorted((one, two), key=lambda color: -color_score(color, truth))
    near_score, far_score = (LIPS.score(tagged({"color": color}), wanted, "fixed").reward for color in (near, far))
    assert near_score >= far_score
    assert LIPS.score(LIPS.perfect(wanted), wanted, "fixed").reward == pytest.approx(1)


def test_a_bare_face_is_answered_with_an_empty_list_in_fixed():
    for look in (TRUTH, TRUTH[:1]):
        assert TASK.score(tagged(look), [], "fixed").reward == pytest.approx(0.3)
        assert TASK.score(tagged([]), look, "fixed").reward == pytest.approx(0.3)
    right = TASK.score(tagged([]), [], "fixed")
    assert right.reward == pytest.approx(1.3) and right.parsed == [] and TASK.perfect([]) == tagged([])
    assert TASK.score(tagged("[{broken]"), TRUTH, "fixed").reward == pytest.approx(0.09) and TASK.score("[{", TRUTH, "fixed").reward == 0
    assert right.parts == pytest.approx({"format": 0.3, "accuracy": 1}) and TASK.score("[]", [], "fixed").parts["format"] == pytest.approx(
        0.21
    )
    assert read_look(tagged([])) == [] and read_look("[]") is None and read_look("52 texture 5274.4 %") is None
    assert TASK.read_truth({"solution": []}) == []
    with pytest.raises(DataError, match="list of 1 to 3"):
        LIPS.read_truth({"solution": []})


def test_the_published_code_knows_no_bare_face():
    """An empty list is unparseable there, makeup on a bare face matches nothing: neither earns what a right answer does."""
    assert TASK.score(tagged([]), [], "paper").reward == TASK.score(tagged([]), TRUTH, "paper").reward == pytest.approx(0.332)
    assert TASK.score(tagged(TRUTH), [], "paper").reward == pytest.approx(0.3)
    assert TASK.most is not None and TASK.most([], "paper") == pytest.approx(0.332) and TASK.most([], "fixed") == 1.3


REGIONS = ("LIP_FULL_BASIC", "BLUSHER_CENTER_WIDE_BASIC", "EYESHADOW_OVEREYE_FULL_BASIC")
LOOKS = st.lists(COLORS, min_size=1, max_size=3).map(
    lambda colors: [{"shape": shape, "color": color} for shape, color in zip(REGIONS, colors, strict=False)]
)


@st.composite
def malformed_looks(draw, look):
    """A text that is no answer: a right one of which one thing is broken, or anything at all."""
    whole = json.dumps(look)
    item = look[draw(st.integers(0, len(look) - 1))]
    place = draw(st.integers(0, len(whole) - 1))
    words = draw(st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "answer>" not in text))
    return draw(
        st.sampled_from(
            [
                words,
                whole,
                tagged(words) if not words.strip().startswith("[") else words,
                tagged(whole[:place]),
                tagged(look)[: place + 1],
                tagged(look) + words,
                words + tagged(look),
                tagged(look) * 2,
                tagged(tagged(look)),
                tagged(item),
                tagged([*look, *look, *look, *look]),
                tagged([*look, {"shape": item["shape"]}]),
                tagged(whole.replace(item["color"], item["color"][1:])),
                tagged(whole.replace(item["color"], item["color"][:-1] + "G")),
                tagged(whole.replace('"color"', '"color": "#000000", "color"')),
                tagged(whole.replace('"shape"', '"size": 1e999, "shape"')),
            ]
        )
    )


@given(st.data(), LOOKS, ITEMS)
def test_no_malformed_look_beats_a_well_formed_wrong_one_in_fixed(data, truth, wrong):
    text = data.draw(malformed_looks(truth))
    assert TASK.score(text, truth, "fixed").reward < 0.3 <= TASK.score(tagged(wrong), truth, "fixed").reward


@given(st.data(), LOOKS, COLORS)
def test_no_malformed_lipstick_beats_a_well_formed_wrong_one_in_fixed(data, truth, wrong):
    right = truth[0]["color"]
    broken = [right, {"colour": right}, {"color": right[1:]}, [{"color": right}], f'{{"color": "#000000", "color": "{right}"}}']
    text = data.draw(malformed_looks(truth) | st.sampled_from([tagged(answer) for answer in broken]))
    if (value := LIPS.score(text, truth, "fixed").reward) > 0:  # an item of a look names a colour, too
        assert text in [tagged(item) for item in truth]
        return
    assert value == 0 <= LIPS.score(tagged({"color": wrong}), truth, "fixed").reward


@given(st.data(), LOOKS, COLORS, COLORS)
def test_a_look_earns_more_as_any_of_its_colours_comes_nearer(data, truth, one, two):
    place = data.draw(st.integers(0, len(truth) - 1))
    near, far = sorted((one, two), key=lambda color: -color_score(color, truth[place]["color"]))
    near_score, far_score = (
        TASK.score(tagged([{**item, "color": color} if at == place else item for at, item in enumerate(truth)]), truth, "fixed").reward
        for color in (near, far)
    )
    assert near_score >= far_score - 1e-12
    if color_score(near, truth[place]["color"]) > color_score(far, truth[place]["color"]) + 1e-6:
        assert near_score > far_score


@pytest.mark.parametrize("solution", [None, "x", [{"shape": "a"}], [{"shape": "a", "color": "red"}], TRUTH * 2])
def test_a_solution_that_breaks_the_schema_is_refused(solution):
    with pytest.raises(DataError, match="solution"):
        TASK.read_truth({"solution": solution})
