"""Rows of a pair set: strict, in both directions."""

from dataclasses import replace

import pytest

from portraitkit.errors import DataError
from preference_data.schema import DIMENSIONS, Fault, Origin, Pair, contradictions, pair_of, row_of

PAIR = Pair(
    id="p1",
    input="i.png",
    a="a.png",
    b="b.png",
    verdicts=dict.fromkeys(DIMENSIONS, "a"),
    overall="a",
    scores=dict.fromkeys(DIMENSIONS, (4.0, 2.5)),
    reasoning="because",
    annotator="anna",
    source="set",
    origin_a=Origin("blur", (Fault("blur", 0.5),), 3),
    origin_b=Origin("label", model="b.png", is_label=True),
    anchor="b.png",
    consent="signed",
    licence="CC0",
    age_band="30-44",
    gender="woman",
    skin_tone="monk-6",
    synthetic=True,
    identity="x",
    split="held_out",
)


def test_a_row_comes_back_as_it_was():
    assert pair_of(row_of(PAIR)) == PAIR
    bare = Pair("p", "i", "a", "b")
    assert pair_of(row_of(bare)) == bare
    assert pair_of({"id": "p", "input_file_name": "i", "a_file_name": "a", "b_file_name": "b"}) == bare


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overal": "a"}, ["overal", "did you mean 'overall'"]),
        ({"id": ""}, ["id", "must be text"]),
        ({"a_file_name": 3}, ["a_file_name 3"]),
        ({"overall": "left"}, ["overall 'left'", "a, b, tie"]),
        ({"verdicts": {"texture": "a"}}, ["verdicts.skin_smoothing", "missing"]),
        ({"verdicts": dict.fromkeys(DIMENSIONS, "a") | {"textur": "a"}}, ["did you mean 'texture'"]),
        ({"verdicts": dict.fromkeys(DIMENSIONS, ["a"])}, ["must be one of"]),
        ({"scores": dict.fromkeys(DIMENSIONS, [1, 6])}, ["1 to 5"]),
        ({"scores": dict.fromkeys(DIMENSIONS, [1, True])}, ["1 to 5"]),
        ({"scores": dict.fromkeys(DIMENSIONS, [1, 2, 3])}, ["two numbers"]),
        ({"age_band": "31"}, ["age_band '31'"]),
        ({"skin_tone": "monk-11"}, ["monk-10"]),
        ({"split": "test"}, ["split 'test'", "held_out"]),
        ({"synthetic": "yes"}, ["true or false"]),
        ({"origin_a": {"generator": "g", "strength": 1}}, ["origin_a", "'strength' is unknown"]),
        ({"origin_a": {"generator": "g", "faults": [{"kind": "blur"}]}}, ["origin_a.faults"]),
        ({"origin_b": {"generator": "g", "seed": 1.5}}, ["seed 1.5"]),
        ({"origin_b": "g"}, ["must be an object"]),
    ],
)
def test_impossible_rows_are_refused_by_value_and_rule(change, words):
    with pytest.raises(DataError) as error:
        pair_of(row_of(PAIR) | change)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_judgements_that_speak_against_themselves_are_found():
    assert contradictions(PAIR) == []
    assert contradictions(replace(PAIR, overall="b", scores=None)) == ["overall b, but no dimension is won by it"]
    assert len(contradictions(replace(PAIR, verdicts=dict.fromkeys(DIMENSIONS, "b"), overall="b"))) == 5
    assert contradictions(replace(PAIR, overall=None)) == ["has verdicts but no overall one"]
    ties = dict.fromkeys(DIMENSIONS, "tie")
    assert contradictions(replace(PAIR, verdicts=ties, scores=None)) == ["overall a, but every dimension is a tie"]
    assert contradictions(replace(PAIR, verdicts=ties, overall="tie")) == []
