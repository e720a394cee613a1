"""The answer contract, in full and in the short form: one way to write it, one strict way to read it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data.contract import (
    BRIEF_WORDS,
    Answer,
    Unreadable,
    every_digit,
    prompt,
    read_answer,
    read_brief,
    verdicts_in_files,
    write_answer,
    write_brief,
)
from preference_data.schema import DIMENSIONS, TITLES

SCORES = st.integers(1, 5)
PLACES = st.sampled_from(["first", "second"])
ANSWERS = st.builds(
    Answer,
    st.fixed_dictionaries({name: st.tuples(SCORES, SCORES) for name in DIMENSIONS}),
    PLACES,
    st.just("it is"),
)
GOOD = write_answer(Answer({name: (4, 2) for name in DIMENSIONS}, "first", "Image1 keeps pores."))
BRIEF = "<think>smooth 4 2 blemish 5 3 texture 4 4 clarity 3 3 identity 5 5</think><answer>1</answer>"


@given(ANSWERS)
def test_what_is_written_is_read(answer):
    assert read_answer(write_answer(answer)) == answer


def test_one_dimension_has_no_averages():
    titles, answer = {"texture": TITLES["texture"]}, Answer({"texture": (4, 2)}, "first", "pores")
    assert "Average" not in write_answer(answer, titles) and read_answer(write_answer(answer, titles), titles) == answer
    assert isinstance(read_answer(GOOD, titles), Unreadable)


def test_the_prompt_names_every_line_of_the_answer():
    for line in write_answer(Answer(dict.fromkeys(DIMENSIONS, (1, 1)), "first", "")).splitlines()[2:-2]:
        assert line.split(":")[0] + ":" in prompt()


def test_spaces_and_blank_lines_are_put_up_with():
    assert not isinstance(read_answer("\n" + GOOD.replace("\n", "\n\n  ") + "\n\n"), Unreadable)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>", ""),
        ("</answer>", ""),
        ("<answer>", "Sure! <answer>"),
        ("</answer>", "</answer> I hope this helps."),
        ("<think>", "<think><think>"),
        ("Clarity: Image1 = 4, Image2 = 2\n", ""),
        ("Clarity", "Sharpness"),
        ("Clarity: Image1 = 4", "Clarity: Image1 = 6"),
        ("Clarity: Image1 = 4", "Clarity: Image1 = 0"),
        ("Clarity: Image1 = 4", "Clarity: Image1 = 4.5"),
        ("Clarity: Image1 = 4, Image2 = 2", "Clarity: Image2 = 2, Image1 = 4"),
        ("Average: Image1 = 4.0", "Average: Image1 = 3.0"),
        ("Average: Image1 = 4.0, Image2 = 2.0\n", ""),
        ("Image1 is better", "Image3 is better"),
        ("Image1 is better", "Both are good"),
        (TITLES["texture"] + ": Image1 = 4, Image2 = 2\nClarity", "Clarity: Image1 = 4, Image2 = 2\n" + TITLES["texture"]),
    ],
)
def test_everything_else_is_unreadable_and_kept(before, after):
    text = GOOD.replace(before, after, 1)
    assert text != GOOD
    answer = read_answer(text)
    assert isinstance(answer, Unreadable) and answer.text == text and answer.reason


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("score", [0, 6, 9])
def test_scores_outside_1_to_5_are_refused_where_the_averages_fit_them(side, score):
    text = GOOD.replace(f"Image{side} = {(4, 2)[side - 1]}", f"Image{side} = {score}")
    answer = read_answer(text)
    assert isinstance(answer, Unreadable) and answer.reason.startswith("a score outside 1 to 5")


@pytest.mark.parametrize("average", ["Image1 = 4.1", "Image1 = 3.9", "Image2 = 2.1", "Image2 = 1.9"])
def test_averages_are_those_of_the_scores_to_their_one_decimal(average):
    before = f"{average[:6]} = {(4.0, 2.0)[int(average[5]) - 1]}"
    answer = read_answer(GOOD.replace(before, average))
    assert isinstance(answer, Unreadable) and "are not the averages" in answer.reason


def test_an_answer_against_its_own_scores_is_readable_and_says_so():
    answer = read_answer(GOOD.replace("Image1 is", "Image2 is"))
    assert isinstance(answer, Answer) and not answer.coherent
    equal = [Answer({name: (3, 3) for name in DIMENSIONS}, better, "") for better in ("first", "second")]
    assert all(answer.coherent for answer in equal)


def test_averages_and_coherence_of_an_answer_and_of_its_exchange():
    scores = dict(zip(DIMENSIONS, [(5, 1), (4, 4), (3, 3), (2, 5), (1, 3)], strict=True))
    answer = Answer(scores, "first", "Image1 is warmer than image 2")
    assert answer.averages == (3.0, 3.2) and not answer.coherent
    other = answer.exchanged()
    assert (other.averages, other.better, other.reasoning) == ((3.2, 3.0), "second", "Image2 is warmer than image 1")
    assert not other.coherent and other.exchanged() == answer
    assert Answer(scores, "second", "").coherent and Answer(scores, "second", "").exchanged().coherent


def test_orders_are_undone():
    answer = Answer({name: (5, 3) for name in DIMENSIONS}, "first", "")
    assert verdicts_in_files(answer, "ab") == (dict.fromkeys(DIMENSIONS, "a"), "a", dict.fromkeys(DIMENSIONS, (5.0, 3.0)))
    assert verdicts_in_files(answer, "ba") == (dict.fromkeys(DIMENSIONS, "b"), "b", dict.fromkeys(DIMENSIONS, (3.0, 5.0)))


# ---- the short form


@given(ANSWERS)
def test_a_brief_answer_that_is_written_is_read(answer):
    found = read_brief(write_brief(answer))
    assert isinstance(found, Answer) and (found.scores, found.better) == (answer.scores, answer.better)
    assert write_brief(found) == write_brief(answer) and found.reasoning.startswith("smooth ")
    assert isinstance(read_brief(write_answer(answer)), Unreadable) and isinstance(read_answer(write_brief(answer)), Unreadable)


def test_five_answers_have_every_digit_at_every_place():
    found = [read_brief(text) for text in every_digit()]
    assert all(isinstance(answer, Answer) for answer in found) and [answer.better for answer in found] == ["first", *["second"] * 4]
    for name in DIMENSIONS:
        assert [answer.scores[name] for answer in found] == [(digit, digit) for digit in range(1, 6)]


def test_the_example_and_spaces():
    found = read_brief(BRIEF)
    assert isinstance(found, Answer) and found.better == "first"
    assert list(found.scores.values()) == [(4, 2), (5, 3), (4, 4), (3, 3), (5, 5)] and list(found.scores) == list(BRIEF_WORDS)
    spaced = read_brief(f"\n{BRIEF.replace('><', '> <').replace(' blemish', '  blemish')} ")
    assert isinstance(spaced, Answer) and (spaced.scores, spaced.better) == (found.scores, found.better)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>", ""),
        ("</think>", ""),
        ("</answer>", ""),
        ("</answer>", "</answer>."),
        ("<think>", "Sure <think>"),
        ("smooth 4 2 ", ""),
        ("smooth 4 2 blemish 5 3", "blemish 5 3 smooth 4 2"),
        ("smooth 4 2", "smooth 4"),
        ("smooth 4 2", "smooth 4 2 2"),
        ("smooth 4 2", "smooth 0 2"),
        ("smooth 4 2", "smooth 6 2"),
        ("smooth 4 2", "smooth 4.0 2"),
        ("smooth 4 2", "smooth \uff14 2"),
        ("smooth", "Smooth"),
        ("smooth 4 2", "smooth 42"),
        ("<answer>1", "<answer>3"),
        ("<answer>1", "<answer>12"),
        ("<answer>1", "<answer>"),
    ],
)
def test_everything_else_in_the_short_form_is_unreadable_and_kept(before, after):
    text = BRIEF.replace(before, after, 1)
    assert text != BRIEF
    found = read_brief(text)
    assert isinstance(found, Unreadable) and found.text == text and found.reason


@given(st.text())
def test_no_text_breaks_the_readers(text):
    assert isinstance(read_brief(text), Unreadable)
    assert isinstance(read_answer(f"<think>{text}</think><answer>{text}</answer>"), Unreadable)


def test_a_number_that_no_integer_holds_is_unreadable():
    text = write_answer(Answer({name: (4, 2) for name in DIMENSIONS}, "first", "")).replace("Image1 = 4,", f"Image1 = {'9' * 5000},", 1)
    assert isinstance(read_answer(text), Unreadable)
