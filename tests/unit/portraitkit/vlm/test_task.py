"""Text between tags, as the regular expression finds it, in linear time."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.vlm.tasks import load_task
from portraitkit.vlm.task import inside

PIECES = st.lists(st.sampled_from(["<answer>", "</answer>", "<think>", "</think>", "\n", "1", "<", "answer>"]), max_size=10).map("".join)


@given(PIECES)
def test_it_is_what_the_regular_expression_finds(text):
    found = re.search("<answer>(.*?)</answer>", text, re.DOTALL)
    assert inside(text, "answer") == (found[1] if found else None)


TRUTHS = {
    "area": {"area": 400},
    "makeup": {"solution": [{"shape": "lip", "color": "#B03050"}]},
    "makeup-lips": {"solution": [{"shape": "lip", "color": "#B03050"}]},
    "emotion": {"AUs": ["AU4"], "labels": ["anger"]},
    "preference": {"verdict": {"overall": "x"}},
}
LOOPS = [
    "<reasoning></reasoning><answer>" * 3000,
    "<reasoning>" * 9000,
    "<think>" * 14000,
    "<think></think><answer>" * 4000,
    "<think>" + "</think><answer></answer>" * 4000,
    ("<reasoning></reasoning>" + " " * 1000) * 100,
    "<answer>" * 12000,
    "<answer>" + "1" * 100_000,
    "<answer>" + "[" * 50_000 + "</answer>",
]


@pytest.mark.parametrize("name", TRUTHS)
def test_a_completion_that_repeats_itself_to_100_kb_is_scored_at_once(name):
    """The published patterns need minutes for these: `<a>.*?</a>` with a tail is tried from every tag to every other."""
    task = load_task(name)
    truth = task.read_truth(TRUTHS[name])
    started = time.process_time()
    for text in LOOPS:
        for mode in ("paper", "fixed"):
            task.score(text, truth, mode)
        if task.metrics is not None:
            task.metrics([text], [truth])
    assert time.process_time() - started < 5
