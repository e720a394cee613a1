"""Judgements on disk, conflicts, and what they add up to."""

import hashlib
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
    assert consensus(PAIR, [says("a"), says("a", "max"), says("b", "sue", role="senior")]).overall == "b"
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
    assert "Agreement of anna, max" in out and " 0.00 " in out and "Bradley-Terry" in out and "1 pair in conflict" in out
    print_agreement([says("a")], [PAIR])
    row = next(line for line in capsys.readouterr().out.splitlines() if "Overall" in line)
    assert row.split("│")[2:4] == ["     - ", "     - "]


# ---- values by hand


def test_a_judgement_may_take_30_years_and_no_longer():
    assert judgement_of(vars(says("a")) | {"seconds": 1e9}).seconds == 1e9 and judgement_of(vars(says("a")) | {"seconds": 0}).seconds == 0
    with pytest.raises(DataError, match="from 0 to 1000000000, or null"):
        judgement_of(vars(says("a")) | {"seconds": 1e9 + 1})


def test_files_have_the_name_up_to_sixty_letters_and_eight_of_its_hash_where_it_has_others(tmp_path):
    digest = hashlib.sha256(("x" * 61).encode()).hexdigest()
    assert file_of(tmp_path, "x" * 60).name == "x" * 60 + ".jsonl"
    assert file_of(tmp_path, "x" * 61).name == f"{'x' * 60}-{digest[:8]}.jsonl"
    assert file_of(tmp_path, "é").name == f"annotator-{hashlib.sha256('é'.encode()).hexdigest()[:8]}.jsonl"


def test_hidden_files_and_those_of_answers_that_cannot_be_read_are_not_judgements(tmp_path):
    append_judgement(tmp_path, says("a"))
    text = file_of(tmp_path, "anna").read_text()
    for name in (".anna.jsonl", "unreadable.jsonl"):
        (tmp_path / "annotations" / name).write_text(text.replace("anna", "max"))
    elsewhere = tmp_path / "max.jsonl"
    elsewhere.write_text(text.replace("anna", "max") + "{}\n")
    assert [row.annotator for row in read_judgements(tmp_path)[0]] == ["anna"]
    rows, rejected = read_judgements(tmp_path, (elsewhere,))
    assert [row.annotator for row in rows] == ["anna", "max"] and [(path, row.line) for path, row in rejected] == [(elsewhere, 2)]


@pytest.mark.parametrize(
    ("verdicts", "common"),
    [
        ("a", "a"),
        ("ab", None),
        ("aab", "a"),
        (["a", "tie"], "tie"),
        (["b", "tie"], "tie"),
        (["b", "b", "tie"], "b"),
        (["a", "b", "tie"], None),
    ],
)
def test_the_common_verdict(verdicts, common):
    found = consensus(PAIR, [says(verdict, str(place)) for place, verdict in enumerate(verdicts)])
    assert (found and found.overall) == common


def test_a_judgement_in_one_order_keeps_its_verdicts_and_scores():
    scores = dict.fromkeys(DIMENSIONS, (5.0, 3.0))
    assert both_orders([row := says("b", scores=scores)]) == [row]  # verdicts are those that were given, whatever the scores say
    (joined,) = both_orders([says("a", scores=scores), says("b", order="ba")])
    assert joined.scores is None and joined.verdicts["clarity"] == "tie"
    (joined,) = both_orders([says("b", scores=scores), says("b", order="ba", scores=dict.fromkeys(DIMENSIONS, (1.0, 3.0)))])
    assert joined.scores["clarity"] == (3.0, 3.0) and joined.verdicts["clarity"] == "tie" and joined.overall == "b"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([("a", (5.0, 3.0)), ("a", (3.0, 4.0))], (4.0, 3.5)),
        ([("a", (3.0, 3.0))], (3.0, 3.0)),  # as good, and one is better all the same
        ([("b", (3.0, 3.0))], (3.0, 3.0)),
        ([("tie", (4.0, 3.0))], (4.0, 3.0)),
        ([("tie", (3.0, 4.0))], (3.0, 4.0)),
        ([("b", (4.0, 3.0))], None),  # against its own scores
        ([("a", (3.0, 4.0))], None),
        ([("a", (5.0, 3.0)), ("a", None)], None),
        ([("a", None)], None),
    ],
)
def test_scores_are_means_of_all_that_decide_where_they_say_what_the_verdicts_say(given, kept):
    rows = [says(verdict, str(place), scores=both and dict.fromkeys(DIMENSIONS, both)) for place, (verdict, both) in enumerate(given)]
    found = consensus(PAIR, rows)
    assert found.scores == (kept and dict.fromkeys(DIMENSIONS, kept))


def test_the_last_seniors_words_count_and_are_turned_to_the_files():
    rows = [says("a"), says("b", "sue", role="senior"), says("a", "kim", role="senior", order="ba"), says("b", "max")]
    found = consensus(PAIR, [replace(row, reasoning=f"Image1 of {row.annotator}") for row in rows])
    assert (found.overall, found.annotator, found.reasoning) == ("a", "kim", "Image2 of kim")
    rows = [
        replace(says("b", "max"), reasoning="no"),
        replace(says("a"), reasoning=""),
        replace(says("a", "eva"), reasoning="Image1 it is"),
    ]
    assert consensus(PAIR, rows).reasoning == "Image1 it is"
    assert conflicts([says("a"), says("b", "max"), says("a", "kim", role="senior")]) == {}


def test_the_report_leaves_out_seniors_and_strangers():
    rows = [says("a"), says("b", "sue", role="senior"), says("a", "max", pair="gone")]
    report = agreement_report(rows, [PAIR])
    strength = 0.7563  # where one win and half a win and a loss against 0 balance: 2 / (1 + exp(2 s)) = tanh(s / 2)
    assert report["annotators"] == {"anna": 1, "max": 1} and report["flips"] == {}
    assert report["bradley_terry"] == pytest.approx({"one": strength, "two": -strength}, abs=2e-4)
    assert agreement_report(rows[1:2], [PAIR])["agreement"] == {}


def test_names_with_brackets_are_printed_as_they_are(capsys):
    pair = replace(PAIR, origin_a=Origin("[bold]one[/bold]"))
    print_agreement([says("a", "[red]anna"), says("b", "[red]anna", pair="q", order="ba"), says("a", "[red]anna", pair="q")], [pair])
    out = capsys.readouterr().out
    assert "Agreement of [red]anna (" in out and "[bold]one[/bold] +" in out and "two -" in out and "in conflict" not in out
    assert out.index("[bold]one[/bold]") < out.index("two -") and "1.00" in out


def test_flips_are_the_share_of_pairs_that_were_judged_in_both_orders():
    rows = [says("a", pair=str(n)) for n in range(4)] + [says("a" if n else "b", pair=str(n), order="ba", clarity="a") for n in range(3)]
    assert agreement_report(rows, [])["flips"] == {"anna": dict.fromkeys((*DIMENSIONS, "overall"), 1 / 3) | {"clarity": 0}}
