"""`paper` mode against values that the sources' own code gave: random and adversarial completions, in published_rewards.jsonl.

The code: `utils/reward.py` and `reward_lips.py` of JuneJe0n/MakeupExtractor at 3497f5e (any shape allowed), `grpo_jsonl.py` of
RobitsG/Facial-R1 at 0b1be9b (units, emotion, form). Completions come from a seeded generator, at most four of each value.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from policies.vlm.tasks.emotion import emotion_task
from policies.vlm.tasks.makeup import LIPS, TASK

ROWS = [json.loads(line) for line in Path(__file__).with_name("published_rewards.jsonl").read_text(encoding="utf-8").splitlines()]


def test_there_are_rows_of_every_task():
    assert Counter(row["task"] for row in ROWS) == {"makeup": 60, "makeup-lips": 50, "emotion": 50}


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_paper_mode_pays_what_the_published_code_pays(row):
    """Colours to 1e-4: scikit-image's matrix has two digits fewer than theirs."""
    if row["task"] == "emotion":
        task = emotion_task(signed=True)
        parts = task.score(row["completion"], task.read_truth(row["truth"]), "paper").parts
        assert list(parts.values()) == pytest.approx(row["reward"], abs=1e-5)
        return
    task = TASK if row["task"] == "makeup" else LIPS
    assert task.score(row["completion"], task.read_truth(row["truth"]), "paper").reward == pytest.approx(row["reward"], abs=1e-4)
