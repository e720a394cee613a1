"""Area rewards: the published totals, and no inversion in `fixed`."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vlm.tasks import synthetic_rows
from policies.vlm.tasks.shape_area import PUBLISHED_CURVES, ROTATED, TASK, WIDE, area_task
from portraitkit.errors import DataError


def answer(number: str, reasoning: str = "10 x 20") -> str:
    return f"<reasoning>{reasoning}</reasoning><answer>{number}</answer>"


@pytest.mark.parametrize(
    ("completion", "area", "paper", "fixed"),
    [
        (answer("400.00"), 400, 4.0, 4.0),
        (answer("300.00"), 400, 2.5, 2.5),  # a quarter off: 3 - 1.5 + 1
        (answer("900.00"), 400, -2.0, -2.0),  # at most 6 is lost
        (answer("10.00"), 20, 3 - 6 * 10 / 32 + 1, 3 - 6 * 10 / 32 + 1),  # the floor of 32
        ("<answer>400.00</answer>", 400, 3.5, -3.0),
        (answer("400"), 400, -2.5, -3.0),  # no two decimals; the structure is there
        (answer("400.00") + " I hope this helps", 400, 4.0, -3.0),
        ("<answer>1.00</answer>" + answer("400.00"), 400, 3 - 6 * 399 / 400 + 1, -3.0),  # the first one counts
        ("400.00", 400, -3.0, -3.0),
        ("", 400, -3.0, -3.0),
        ("<reasoning></reasoning><answer>-400.00</answer>", 400, -2.5, -3.0),
        (answer("\u0664\u0660\u0660.\u0660\u0660"), 400, 4.0, -3.0),  # digits of other scripts: \d takes them, the form does not
        (answer("\uff14\uff10\uff10.\uff10\uff10"), 400, 4.0, -3.0),
    ],
)
def test_totals(completion, area, paper, fixed):
    assert TASK.score(completion, area, "paper").reward == pytest.approx(paper)
    assert TASK.score(completion, area, "fixed").reward == pytest.approx(fixed)


def test_without_the_floor_the_error_is_relative():
    assert area_task(floor=0).score(answer("10.00"), 20.0, "fixed").reward == pytest.approx(3 - 6 * 0.5 + 1)


def test_the_reasoning_tag_drives_prompt_and_parser():
    think = area_task("think")
    assert "<think></think>" in think.prompt and "<reasoning>" not in think.prompt
    assert think.score("<think>x</think><answer>400.00</answer>", 400.0, "fixed").reward == 4
    assert think.score(answer("400.00"), 400.0, "fixed").reward == -3


@given(st.text(max_size=80), st.floats(0.01, 2500))
def test_whatever_is_written_stays_in_range(text, area):
    for mode in ("paper", "fixed"):
        low, high = TASK.ranges[mode]
        for completion in (text, f"<answer>{text}</answer>", answer(text)):
            score = TASK.score(completion, area, mode)
            assert low <= score.reward <= high
            assert score.reward == pytest.approx(sum(score.parts.values()))


@given(st.floats(25, 1225), st.floats(0, 2000), st.sampled_from(["{}", "{}.", " <answer>{}</answer>", "<reasoning>{}</reasoning>"]))
def test_no_malformed_answer_beats_a_well_formed_one_in_fixed(area, wrong, form):
    well_formed = TASK.score(answer(f"{wrong:.2f}"), area, "fixed").reward
    malformed = TASK.score(form.format(f"{area:.2f}"), area, "fixed").reward
    assert malformed == -3 < well_formed


@given(st.integers(2500, 122500), st.integers(0, 50000), st.integers(1, 50000))
def test_a_nearer_answer_never_earns_less(cents, off, further):
    area = cents / 100
    near, far = (TASK.score(answer(f"{area + d / 100:.2f}"), area, "fixed").reward for d in (off, off + further))
    assert near >= far


@given(st.integers(1, 250000))
def test_the_perfect_answer_earns_the_maximum(cents):
    truth = TASK.read_truth({"area": cents / 100})
    for mode in ("paper", "fixed"):
        assert TASK.score(TASK.perfect(truth), truth, mode).reward == pytest.approx(TASK.ranges[mode][1])


@pytest.mark.parametrize("mode", ["paper", "fixed"])
def test_the_ranges_are_reached_at_both_ends(mode):
    assert (TASK.score("", 400.0, mode).reward, TASK.score(answer("400.00"), 400.0, mode).reward) == TASK.ranges[mode]


def test_the_answer_to_imitate_says_the_share_and_the_area():
    assert TASK.make_row is not None
    row = TASK.make_row("train", 0)
    assert row["target"] == answer(f"{row['area']:.2f}", f"it covers {row['area'] / 25:.1f} % of 50 x 50")


def test_each_task_draws_its_own_sizes_and_angles(monkeypatch):
    seen, draw = [], synthetic_rows.draw_shape
    monkeypatch.setattr(synthetic_rows, "draw_shape", lambda *given, **options: seen.append(options) or draw(*given, **options))
    for task in (TASK, ROTATED, WIDE):
        assert task.make_row is not None and task.make_row("train", 0)
    assert [tuple(options.values()) for options in seen] == [((20.0, 35.0), 0.0), ((20.0, 35.0), 45.0), ((5.0, 35.0), 0.0)]


def test_a_number_beyond_all_others_is_wrong_and_no_json_value():
    score = TASK.score(answer("9" * 400 + ".00"), 400.0, "fixed")
    assert score.reward == -2 and score.parsed is None
    assert TASK.metrics is not None
    assert TASK.metrics([answer("9" * 400 + ".00"), answer("300.00")], [400.0, 400.0]) == {"relative_error": 0.25, "unreadable": 0.5}
    with pytest.raises(ValueError, match="zip"):
        TASK.metrics([answer("300.00")] * 2, [400.0])


def test_truths_and_curves_are_taken_as_given():
    for area in (1e-9, 400, sys.float_info.max):
        assert TASK.read_truth({"area": area}) == area
    assert PUBLISHED_CURVES == {"area": (0.5, 2.6), "area-rotated": (0.125, 2.3), "area-5-35": (0.15, 1.59)}


@pytest.mark.parametrize("area", [None, "400", 0, -1, float("nan"), float("inf"), True, 10**400])
def test_a_truth_that_is_no_area_is_refused(area):
    with pytest.raises(DataError, match="must be a number above 0"):
        TASK.read_truth({"area": area})
