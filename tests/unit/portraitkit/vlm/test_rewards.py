import pytest

from policies.vlm.tasks import BUILT_IN, load_task
from portraitkit.vlm.rewards import part_names, reward_functions, text_of
from portraitkit.vlm.rows import make_rows

TASKS = [name for name in BUILT_IN if load_task(name).make_row is not None]


@pytest.mark.parametrize("mode", ["paper", "fixed"])
@pytest.mark.parametrize("name", TASKS)
def test_the_parts_add_up_to_the_reward(name, mode):
    task = load_task(name)
    rows = make_rows(task, "train", 6, 0)
    functions = reward_functions(task, rows, mode)
    index = [0, 3, 3, 5]
    texts = [task.perfect(rows[0].truth), task.perfect(rows[1].truth), "nonsense", rows[5].target]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = [function(completions=completions, index=index, image=None) for function in functions]
    totals = [sum(value for value in values if value is not None) for values in zip(*columns, strict=True)]
    expected = [task.score(text, rows[at].truth, mode).reward for text, at in zip(texts, index, strict=True)]
    assert totals == pytest.approx(expected)
    assert [function.__name__ for function in functions] == part_names(task, rows[0], mode)


def test_text_of_any_shape_that_trl_hands_over():
    assert (
        text_of("a") == text_of([{"role": "assistant", "content": "a"}]) == text_of([{"content": [{"type": "text", "text": "a"}]}]) == "a"
    )
