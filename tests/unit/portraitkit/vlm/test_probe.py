from dataclasses import replace

import pytest

from policies.vlm.tasks import BUILT_IN, load_task
from portraitkit.vlm.evaluate import Decoding, malformed, probe, probe_reward, row_maxima
from portraitkit.vlm.rows import Row, make_rows

TASKS = [name for name in BUILT_IN if load_task(name).make_row is not None]


@pytest.mark.parametrize("name", TASKS)
def test_fixed_rewards_have_no_inversions_and_reach_their_maximum(name):
    task = load_task(name)
    _, constant, perfect, inversions, worst = probe_reward(task, make_rows(task, "train", 12, 0), "fixed")
    low, high = task.ranges["fixed"]
    assert inversions == 0 and worst is None and perfect == 1 and low <= constant < high


@pytest.mark.parametrize(
    ("columns", "most"),
    [({"AUs": ["AU4"], "labels": []}, 2), ({"AUs": None, "labels": ["fear"]}, 2), ({"AUs": ["AU4"], "labels": ["fear"]}, 3)],
)
def test_rows_that_label_only_part_are_held_against_what_they_allow(columns, most):
    """DISFA and BP4D label no emotion, FER2013 and RAF-DB no units: their perfect answers earn all that there is."""
    task = load_task("emotion")
    rows = [Row((), task.read_truth(columns), "", columns)]
    assert probe_reward(task, rows, "fixed")[2] == 1 and row_maxima(task, rows, "fixed") == [most]
    assert probe_reward(replace(task, perfect=lambda truth: "?"), rows, "fixed")[2] == 0
    assert probe_reward(replace(task, most=None), rows, "fixed")[2] == (most == 3)


def test_the_published_makeup_reward_pays_more_for_broken_answers():
    task = load_task("makeup")
    *_, inversions, worst = probe_reward(task, make_rows(task, "train", 12, 0), "paper")
    assert inversions > 0 and worst.reward > worst.wrong_reward


def test_an_inversion_is_found_and_shown(brightness, rows):
    *_, inversions, worst = probe_reward(brightness, rows, "paper")
    assert inversions == 0 or (worst.reward > worst.wrong_reward and worst.malformed != worst.wrong)
    assert probe_reward(brightness, rows, "fixed")[3] == 0


def test_every_malformed_variant_differs(brightness):
    answer = brightness.perfect("dark")
    assert answer not in malformed(answer) and len(set(malformed(answer))) == len(malformed(answer))


def test_a_random_model_is_probed(tiny_vlm, brightness, rows):
    model, processor, _ = tiny_vlm
    found = probe(model, Decoding(processor, "Light?", 5, 1.0, samples=3), brightness, rows[:4], "fixed")
    assert found.rows == 4 and found.samples == 3 and 0 <= found.zero_variance <= 1 and 0 <= found.cut <= 1
    mean, shortest, longest = found.tokens
    assert shortest <= mean <= longest <= 5 and found.image_tokens[0] >= 1 and found.prompt_tokens > found.image_tokens[1]
    assert found.table().row_count == len(found.lines()) and found.row_maxima == (1.5, 1.5)
    note = {name: note for name, _, note in replace(found, row_maxima=(1.0, 1.0), perfect_share=1.0).lines()}
    assert note["perfect answers at the maximum"] == "these rows allow at most 1"
    assert found.constant_answer in ("<answer>dark</answer>", "<answer>light</answer>")
    good = replace(found, zero_variance=0.25, inversions=0.0, cut=0.0, mean_reward=0.4, constant_reward=0.75)
    assert good.advice().startswith("train: 75% of the groups") and "what needs no eyes earns 0.750" in good.advice()
    assert replace(good, zero_variance=1.0, inversions=0.1).advice().startswith("do not train yet: 100% of the groups have one reward")
