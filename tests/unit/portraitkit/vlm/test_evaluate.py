import pytest
import torch

from portraitkit.vlm.evaluate import Decoding, Evaluation, best_constant, compare, evaluate, score_all
from portraitkit.vlm.generate import Completion


def test_the_best_constant_is_the_more_frequent_word(brightness, rows):
    answer, floor = best_constant(brightness, rows, "fixed")
    share = max(sum(row.truth == word for row in rows) for word in ("dark", "light")) / len(rows)
    assert answer in ("<answer>dark</answer>", "<answer>light</answer>") and floor == pytest.approx(share + 0.5)


def test_a_candidate_can_be_the_best_constant(brightness, rows):
    answer, floor = best_constant(brightness, rows, "paper", candidates=["dark and light"])
    assert floor == pytest.approx(1.0) or floor > 1  # both words at once are right for every row, but earn nothing for form
    assert score_all(brightness, [Completion(answer, 1, False)] * len(rows), rows, "paper").mean() == pytest.approx(floor)


def test_an_evaluation_has_one_value_a_row_and_a_blind_pass(tiny_vlm, brightness, rows):
    model, processor, _ = tiny_vlm
    done = []
    found = evaluate(model, Decoding(processor, "Light?", 6, 1.0, samples=2), brightness, rows, "fixed", advance=done.append)
    assert found.greedy.shape == found.sampled.shape == found.blind.shape == (len(rows),)
    assert [len(group) for group in found.samples] == [2] * len(rows) and sum(done) == 3 * len(rows)


def make_evaluation(values):
    greedy = torch.tensor(values)
    return Evaluation(greedy, greedy / 2, greedy, [], [], {})


def test_the_gain_is_paired():
    before, after = make_evaluation([0.0, 1.0, 2.0, 3.0]), make_evaluation([0.5, 1.5, 2.5, 3.5])
    found = compare(before, after)
    assert found["greedy"]["gain"] == pytest.approx(0.5) and found["greedy"]["gain_ci95"] == pytest.approx((0.5, 0.5))
    interval = found["greedy"]["ci95_before"]
    assert interval[0] < found["greedy"]["before"] < interval[1] and found["sampled"]["gain"] == pytest.approx(0.25)
