"""Judgements on disk, conflicts, and what they add up to."""

from dataclasses import replace

import pytest

from portraitkit.errors import DataError
from preference_data.annotations import (
    Judgement,
    agreement_report,
    append_judgement,
    both_orders,
    conflicts,
    consensus,
    file_of,
    judgement_of,
    print_agreement,
    read_judgements,
)
from preference_data.commands.merge import merge_pairs
from preference_data.schema import DIMENSIONS, Origin, Pair

PAIR = Pair("p", "i", "a", "b", origin_a=Origin("one"), origin_b=Origin("two"))


def says(overall, annotator="anna", *, pair="p", order="ab", role="annotator", scores=None, **verdicts):
    return Judgement(pair, annotator, role, order, dict.fromkeys(DIMENSIONS, overall) | verdicts, overall, scores)


def test_the_last_word_counts_and_files_are_apart(tmp_path):
    for row in (says("a"), says("b"), says("tie", "max"), says("a", order="ba")):
        append_judgement(tmp_path, row)
    found, rejected = read_judgements(tmp_path)
    assert not rejected and {(row.annotator, row.order, row.overall) for row in found} == {
        ("anna", "ab", "b"),
        ("anna", "ba", "a"),
        ("max", "ab", "tie"),
    }
    assert len((tmp_path / "annotations" / "anna.jsonl").read_text().splitlines()) == 3


def test_names_never_share_a_file_or_leave_the_folder(tmp_path):
    names = ["anna", "Anna", "../anna", "a/b", "a b", "a-b", "", "…", "x" * 200]
    files = [file_of(tmp_path, name) for name in names]
    assert len(set(files)) == len(names) and all(file.parent == tmp_path / "annotations" for file in files)


@pytest.mark.parametrize("name", ["unreadable", "Unreadable", "unreadable-model", ".hidden"])
def test_no_name_loses_its_judgements(tmp_path, name):
    append_judgement(tmp_path, says("a", name))
    (tmp_path / "annotations" / "unreadable.jsonl").write_text('{"reason": "no answer"}\n')
    ((row,), rejected) = read_judgements(tmp_path)
    assert row.annotator == name and not rejected


def test_a_bad_row_is_reported_and_skipped(tmp_path):
    append_judgement(tmp_path, says("a"))
    with file_of(tmp_path, "anna").open("a") as file:
        file.write('{"pair": "p", "annotator": "anna"}\n')
    found, rejected = read_judgements(tmp_path)
    assert len(found) == 1 and rejected[0][1].line == 2


@pytest.mark.parametrize(
    "change",
    [
        *({"order": "aa"}, {"verdicts": None}, {"role": "boss"}, {"extra": 1}, {"pair": " "}, {"reasoning": 3}),
        *({"seconds": seconds} for seconds in ("3", True, -1, -0.1, 10**400, float("inf"), float("nan"))),
        {"scores": dict.fromkeys(DIMENSIONS, [10**400, 1])},
    ],
)
def test_impossible_judgements_are_refused(change):
    with pytest.raises(DataError):
        judgement_of(vars(says("a")) | change)


def test_both_orders_become_one():
    high, low = dict.fromkeys(DIMENSIONS, (5.0, 3.0)), dict.fromkeys(DIMENSIONS, (3.0, 4.0))
    (joined,) = both_orders([says("a", scores=high), says("b", order="ba", scores=low)])
    assert joined.overall == "tie" and joined.scores["texture"] == (4.0, 3.5) and joined.verdicts["texture"] == "a"
    (joined,) = both_orders([says("a"), says("tie", order="ba")])
    assert joined.overall == "tie"
    assert len(both_orders([says("a"), says("a", "max")])) == 2


def test_conflicts_are_opposites_until_a_senior_speaks():
    rows = [says("a"), says("a", "max", clarity="b"), says("tie", "eva")]
    assert conflicts(rows) == {"p": ["clarity"]}
    assert conflicts([*rows, says("a", "sue", role="senior")]) == {}
    assert conflicts([says("a"), says("tie", "max")]) == {}


def test_consensus_is_the_senior_else_the_majority_else_open():
    agreed = consensus(PAIR, [says("a"), says("a", "max", clarity="b"), says("b", "eva", clarity="b")])
    assert agreed.overall == "a" and agreed.verdicts["clarity"] == "b" and agreed.annotator == "anna, max, eva"
    assert consensus(PAIR, [says("a"), says("b", "max")]) is None
    assert consensus(PAIR, [says("a"), says("b", "max"), says("b", "sue", role="senior")]).overall == "b"
    assert consensus(PAIR, [says("a"), says("tie", "max")]).overall == "tie"
    assert consensus(PAIR, [says("a", pair="q")]) is None


def test_merging_keeps_known_truth_unless_told():
    truth = replace(PAIR, id="q", verdicts=dict.fromkeys(DIMENSIONS, "b"), overall="b", annotator="degradation")
    rows = [says("a"), says("a", pair="q")]
    merged, counts = merge_pairs([PAIR, truth], rows, relabel=False)
    assert [pair.overall for pair in merged] == ["a", "b"] and counts == {"new": 1, "kept": 1, "unused": 1, "open": 0, "conflict": 0}
    merged, counts = merge_pairs([PAIR, truth], [*rows, says("b", "max")], relabel=True)
    assert [pair.overall for pair in merged] == [None, "a"] and counts["conflict"] == 1


def test_known_truth_that_people_dispute_is_open_when_they_are_to_decide():
    truth = replace(PAIR, verdicts=dict.fromkeys(DIMENSIONS, "b"), overall="b", scores=dict.fromkeys(DIMENSIONS, (3.0, 5.0)))
    truth = replace(truth, annotator="degradation", reasoning="faults")
    disputed, unseen = [says("a"), says("b", "max")], replace(truth, id="q")
    assert merge_pairs([truth], disputed, relabel=False) == ([truth], {"new": 0, "kept": 1, "unused": 1, "open": 0, "conflict": 0})
    assert merge_pairs([truth, unseen], disputed, relabel=True) == (
        [PAIR, unseen],
        {"new": 0, "kept": 1, "unused": 0, "open": 1, "conflict": 1},
    )


def test_the_report_has_flips_and_standings():
    rows = [says("a"), says("a", order="ba"), says("a", pair="q"), says("b", pair="q", order="ba"), says("b", "max")]
    report = agreement_report(rows, [PAIR, replace(PAIR, id="q")])
    assert report["flips"] == {"anna": dict.fromkeys((*DIMENSIONS, "overall"), 0.5)}
    assert report["annotators"] == {"anna": 2, "max": 1} and report["conflicts"] == {"p": [*DIMENSIONS, "overall"]}
    assert set(report["bradley_terry"]) == {"one", "two"}


def test_the_printed_report_has_a_dash_where_nobody_can_agree_and_nothing_without_judgements(capsys):
    print_agreement([], [PAIR])
    assert capsys.readouterr().out == ""
    print_agreement([says("a"), says("b", "max"), says("b", "max", pair="q")], [PAIR, replace(PAIR, id="q")])
    out = capsys.readouterr().out
    assert "Agreement of anna, max" in out and " 0.00 " in out and "Bradley-Terry" in out and "1 pairs in conflict" in out
    print_agreement([says("a")], [PAIR])
    row = next(line for line in capsys.readouterr().out.splitlines() if "Overall" in line)
    assert row.split("│")[2:4] == ["     - ", "     - "]
