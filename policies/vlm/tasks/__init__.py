"""One file a task, each exporting `TASK`; `load_task` finds them by name or by file."""

from portraitkit.vlm.task import Task

BUILT_IN = {
    "area": "policies.vlm.tasks.shape_area:TASK",
    "area-rotated": "policies.vlm.tasks.shape_area:ROTATED",
    "area-5-35": "policies.vlm.tasks.shape_area:WIDE",
    "makeup": "policies.vlm.tasks.makeup:TASK",
    "makeup-lips": "policies.vlm.tasks.makeup:LIPS",
    "emotion": "policies.vlm.tasks.emotion:TASK",
    "preference": "reward_models.judge.preference_task:TASK",
}


def load_task(name: str) -> Task:
    """Load a task by built-in name or as `my_file.py:TASK`; ConfigError where there is none."""
    from portraitkit.discover import load_known

    return load_known(name, BUILT_IN, Task, "--task")
