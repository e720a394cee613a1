"""The short form of the answer contract: what is written is read, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_data.contract import BRIEF_WORDS, Answer, Unreadable, read_answer, read_brief, write_answer, write_brief
from preference_data.schema import DIMENSIONS

SCORES = st.integers(1, 5)
PLACES = st.sampled_from(["first", "second"])
ANSWERS = st.builds(
    Answer,
    st.fixed_dictionaries({name: st.tuples(SCORES, SCORES) for name in DIMENSIONS}),
    PLACES,
    st.just("it is"),
)
GOOD = "<think>smooth 4 2 blemish 5 3 texture 4 4 clarity 3 3 identity 5 5</think><answer>1</answer>"


@given(ANSWERS)
def test_what_is_written_is_read(answer):
    found = read_brief(write_brief(answer))
    assert isinstance(found, Answer) and (found.scores, found.better) == (answer.scores, answer.better)
    assert write_brief(found) == write_brief(answer) and found.reasoning.startswith("smooth ")
    assert isinstance(read_brief(write_answer(answer)), Unreadable) and isinstance(read_answer(write_brief(answer)), Unreadable)


def test_the_example_and_spaces():
    found = read_brief(GOOD)
    assert isinstance(found, Answer) and found.better == "first"
    assert list(found.scores.values()) == [(4, 2), (5, 3), (4, 4), (3, 3), (5, 5)] and list(found.scores) == list(BRIEF_WORDS)
    spaced = read_brief(f"\n{GOOD.replace('><', '> <').replace(' blemish', '  blemish')} ")
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
def test_everything_else_is_unreadable_and_kept(before, after):
    text = GOOD.replace(before, after, 1)
    assert text != GOOD
    found = read_brief(text)
    assert isinstance(found, Unreadable) and found.text == text and found.reason


@given(st.text())
def test_no_text_breaks_the_readers(text):
    assert isinstance(read_brief(text), Unreadable)
    assert isinstance(read_answer(f"<think>{text}</think><answer>{text}</answer>"), Unreadable)


def test_a_number_that_no_integer_holds_is_unreadable():
    text = write_answer(Answer({name: (4, 2) for name in DIMENSIONS}, "first", "")).replace("Image1 = 4,", f"Image1 = {'9' * 5000},", 1)
    assert isinstance(read_answer(text), Unreadable)
