"""The committed tiny Qwen2.5-VL: it loads offline, is small, and looks at pictures."""

import json
from dataclasses import asdict

import pytest

from policies.vlm.tasks import load_task
from portraitkit.vlm.evaluate import best_constant, score_all
from portraitkit.vlm.generate import complete
from portraitkit.vlm.model import EMBEDDED, load_model, load_processor
from portraitkit.vlm.rows import make_rows, shuffled
from reward_models.judge.settings import EMBEDDED_FOLDER
from tools.embedded.judge import SHARES, TEACHING
from tools.embedded.vlm import READ, ROWS, SEE

LIMIT = 12 * 2**20


@pytest.fixture(scope="module")
def embedded():
    return load_model("embedded"), load_processor("embedded")


def test_it_is_small():
    assert sum(path.stat().st_size for folder in (EMBEDDED, EMBEDDED_FOLDER) for path in folder.iterdir()) < LIMIT


def test_its_recipe_is_this_repository_s():
    recipe = json.loads((EMBEDDED / "recipe.json").read_text())
    assert recipe["rows"] == ROWS and recipe["see"] == asdict(SEE) and recipe["read"] == asdict(READ)
    assert recipe["people"]["people"] > 500


def test_the_judge_s_recipe_is_this_repository_s():
    recipe = json.loads((EMBEDDED_FOLDER / "recipe.json").read_text())
    assert recipe["teaching"] == asdict(TEACHING) and recipe["shares"] == SHARES and recipe["people"] > 500


@pytest.mark.parametrize("name", ["area", "emotion", "preference"])
def test_it_looks(embedded, name):
    """On validation rows it beats the best constant answer and its own answers to other rows' pictures."""
    model, processor = embedded
    task = load_task(name)
    rows = make_rows(task, "validation", 48, 1)

    def reward(some):
        answers = complete(model, processor, task.brief or task.prompt, some, max_tokens=64)
        return float(score_all(task, [group[0] for group in answers], some, "fixed").mean())

    looking = reward(rows)
    assert looking > best_constant(task, rows, "fixed")[1] and looking > reward(shuffled(rows))
