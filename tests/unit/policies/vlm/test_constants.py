"""The best constant answer is searched: nothing that a stranger finds by hand earns more."""

import random
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.vlm.tasks.emotion import TASK as EMOTION
from policies.vlm.tasks.emotion import Expression, emotion_task
from policies.vlm.tasks.makeup import LIPS
from policies.vlm.tasks.makeup import TASK as MAKEUP
from policies.vlm.tasks.makeup_scores import _Rows, best_lipstick, best_looks, soft_f1
from policies.vlm.tasks.shape_area import TASK as AREA
from portraitkit.vlm.evaluate import best_constant
from portraitkit.vlm.rows import Row
from preference_data.schema import DIMENSIONS
from reward_models.judge.preference_task import TASK as PREFERENCE
from reward_models.judge.preference_task import Preference, perfect

SHAPES = ("LIP_FULL_BASIC", "BLUSHER_CENTER_WIDE_BASIC", "EYESHADOW_OVEREYE_FULL_BASIC")
UNITS = (1, 4, 12, 25)
MODES = ("fixed", "paper")


def rows_of(truths):
    return [Row((), truth, "", {}) for truth in truths]


def mean(task, answer, truths, mode="fixed"):
    return sum(task.score(answer, truth, mode).reward for truth in truths) / len(truths)


def colour_near(draw, center, spread=40):
    return "#" + "".join(f"{min(max(value + draw.randint(-spread, spread), 0), 255):02X}" for value in center)


@pytest.fixture
def looks():
    """Forty looks of one to three items, each region with colours of its own."""
    draw = random.Random(0)
    centers = dict(zip(SHAPES, ((185, 70, 80), (230, 140, 140), (120, 90, 80)), strict=True))
    return [
        [{"shape": shape, "color": colour_near(draw, centers[shape])} for shape in sorted(draw.sample(SHAPES, draw.randint(1, 3)))]
        for _ in range(40)
    ]


EXPRESSIONS = st.builds(
    Expression, st.none() | st.frozensets(st.sampled_from(UNITS)), st.none() | st.sampled_from(["anger", "fear", "neutral"])
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", [EMOTION, emotion_task(signed=True)])
@settings(max_examples=8, deadline=None)
@given(truths=st.lists(EXPRESSIONS, min_size=1, max_size=8))
def test_no_set_of_units_and_no_emotion_beats_the_constant(task, mode, truths):
    _, floor = best_constant(task, rows_of(truths), mode)
    sets = [frozenset(some) for count in range(len(UNITS) + 1) for some in combinations(UNITS, count)]
    every = (task.perfect(Expression(units, emotion)) for units in sets for emotion in ("anger", "fear", "neutral"))
    assert floor == pytest.approx(max(mean(task, answer, truths, mode) for answer in every))


def test_a_compromise_that_is_right_for_no_row_is_found():
    truths = [Expression(frozenset(units), "fear") for units in ({1, 2, 4}, {1, 2, 5}, {2, 4, 5}, {1, 4, 5})]
    answer, floor = best_constant(EMOTION, rows_of(truths), "fixed")
    assert answer == "<think>(AU1) (AU2) (AU4) (AU5)</think><answer>fear</answer>"
    assert floor > max(mean(EMOTION, EMOTION.perfect(truth), truths) for truth in truths)


def test_no_colour_near_or_far_beats_the_constant_lipstick(looks):
    answer, floor = best_constant(LIPS, rows_of(looks), "fixed")
    color = answer.partition("#")[2][:6]
    red, green, blue = (int(color[at : at + 2], 16) for at in (0, 2, 4))
    near = product(*([max(value - 1, 0), value, min(value + 1, 255)] for value in (red, green, blue)))
    draw = random.Random(1)
    tried = [*near, *(tuple(draw.randrange(256) for _ in range(3)) for _ in range(40))]
    others = [mean(LIPS, f'<answer>{{"color": "#{r:02X}{g:02X}{b:02X}"}}</answer>', looks) for r, g, b in tried]
    assert floor >= max(others) - 1e-9 and floor == pytest.approx(mean(LIPS, answer, looks))
    assert floor > max(mean(LIPS, LIPS.perfect(look), looks) for look in looks)


@pytest.mark.parametrize("mode", MODES)
def test_no_other_look_beats_the_constant_one(looks, mode):
    answer, floor = best_constant(MAKEUP, rows_of(looks), mode)
    found = MAKEUP.score(answer, looks[0], mode).parsed
    assert floor == pytest.approx(mean(MAKEUP, answer, looks, mode))
    draw, others = random.Random(2), [found[:place] + found[place + 1 :] for place in range(len(found)) if len(found) > 1]
    for _ in range(60):  # another colour, another shape, one item more
        changed = [dict(item) for item in found]
        item = draw.choice(changed)
        center = [int(item["color"][at : at + 2], 16) for at in (1, 3, 5)]
        item["color"] = colour_near(draw, center, draw.choice([2, 10, 60]))
        if draw.random() < 0.3:
            item["shape"] = draw.choice(SHAPES)
        if len(changed) < 3 and draw.random() < 0.3:
            changed.append(draw.choice(draw.choice(looks)))
        others.append(changed)
    assert floor >= max(mean(MAKEUP, MAKEUP.perfect(other), looks, mode) for other in others) - (1e-3 if mode == "fixed" else 0)
    if mode == "fixed":
        assert floor > max(mean(MAKEUP, MAKEUP.perfect(look), looks) for look in looks)


@given(st.lists(st.integers(2000, 122500).map(lambda cents: cents / 100), min_size=1, max_size=12), st.floats(0, 1300))
def test_an_area_between_those_of_the_rows_earns_no_more(areas, other):
    """The mean reward is linear between the rows' areas and bends down at them only: the best constant is one of them."""
    assert best_constant(AREA, rows_of(areas), "fixed")[1] >= mean(AREA, AREA.perfect(other), areas) - 1e-9


SHOWN = ("first", "second", "tie")
VERDICTS = st.sampled_from(SHOWN)
PREFERENCES = st.builds(Preference, st.none() | VERDICTS, st.dictionaries(st.sampled_from(DIMENSIONS), VERDICTS, min_size=1))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=4, deadline=None)
@given(truths=st.lists(PREFERENCES, min_size=1, max_size=3))
def test_no_verdict_beats_the_constant_one(mode, truths):
    _, floor = best_constant(PREFERENCE, rows_of(truths), mode)
    every = (Preference(side, dict(zip(DIMENSIONS, all_five, strict=True))) for side in SHOWN[:2] for all_five in product(SHOWN, repeat=5))
    assert floor == pytest.approx(max(mean(PREFERENCE, perfect(answer), truths, mode) for answer in every))


def test_a_look_is_matched_with_the_items_of_its_colours():
    """Shapes alone would match the other way round."""
    red, blue = {"shape": "LIP_FULL_BASIC", "color": "#B03050"}, {"shape": "LIP_FULL_BASIC", "color": "#3050B0"}
    mean, matched = _Rows([[red, blue]], "fixed").match([blue, red])
    assert mean == pytest.approx(1) and matched[0, :2, :2].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("color", ["#000000", "#FFFFFF", "#FF0000", "#00FF00", "#0000FF", "#01FE80", "#B03050", "#7F7F7F", "#30B050"])
def test_the_best_colour_for_one_row_is_the_rows(color):
    assert best_lipstick([[{"shape": SHAPES[0], "color": color}]]) == color


@pytest.mark.parametrize("mode", MODES)
def test_no_best_look_has_more_than_three_items(mode):
    shapes = (*SHAPES, "EYESHADOW_CREASE")
    looks = best_looks([[{"shape": shape, "color": f"#{120 + 20 * place:02X}4050"}] for place, shape in enumerate(shapes)], mode)
    assert len(looks) == 4 and max(map(len, looks)) <= 3 and best_looks([[], []], mode) == []


def test_what_a_look_is_matched_for_is_its_mean_accuracy(looks):
    """With other shapes, other colours, and up to three items on either side."""
    rows = _Rows(looks, "fixed")
    for look in looks[:12]:
        assert rows.match(look)[0] == pytest.approx(sum(soft_f1(look, truth) for truth in looks) / len(looks), abs=1e-9)
    two, other = {"shape": SHAPES[0], "color": "#B03050"}, {"shape": SHAPES[1], "color": "#B03050"}
    for mode, one, none in (("fixed", 2 * (0.7 + 0.3 * 0.2) / 3, 0.7 + 0.3 * 0.2), ("paper", 2 / 3, 1)):
        assert _Rows([[two, two]], mode).match([other])[0] == pytest.approx(one)  # S = .76 is a match, too
        assert _Rows([[two]], mode).match([other])[0] == pytest.approx(none)
        assert _Rows([[two]], mode).match([{**other, "color": "#30B0FF"}])[0] == pytest.approx(0 if mode == "paper" else 0.06, abs=0.1)
