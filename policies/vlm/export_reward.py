"""What the reward files of `align-vlm --export` import: a task's reward as one number for one answer."""

import json
from collections.abc import Callable

from policies.vlm.tasks import load_task
from portraitkit.vlm.task import Mode


def exported_reward(task: str, mode: Mode) -> Callable[[str, str], float]:
    """A function (answer, ground truth) -> the total that `score-completions` prints, rounded as it prints it.

    Args:
        task: as `--task` takes it.
        mode: of the rewards.

    Raises:
        ConfigError: the task is unknown. What the function raises for a truth that the task cannot read is a DataError.
    """
    loaded = load_task(task)

    def reward(answer: str, ground_truth: str) -> float:
        return round(float(loaded.score(answer, loaded.read_truth(json.loads(ground_truth)), mode).reward), 10)

    return reward
