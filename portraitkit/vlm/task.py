"""The contract of a task with verifiable rewards: what a row must hold, how an answer is read, what it earns.

A task is one file with one exported constant `TASK`; `align-vlm --task my_file.py:TASK` and `score-completions` load a user's
own by the road the built-in ones take. Two modes: `paper` is what was published, faults included, for comparison; `fixed`
repairs the faults.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from portraitkit.files.jsonl import read_json

Mode = Literal["paper", "fixed"]
ASKED = "portraitkit_prompt"  # Where a saved model's config.json says whether it was trained on a task's full or brief prompt


@dataclass(frozen=True)
class Score:
    """What a completion earned."""

    reward: float  # the total, within the task's range
    parts: dict[str, float | None]  # the rewards that were added up; None where one does not apply to the row
    parsed: Any  # the answer as it was read, as JSON values; None where it could not be read


@dataclass(frozen=True)
class Task:
    """A task with verifiable rewards.

    Attributes:
        name: as `--task` takes it.
        prompt: the instruction; it states the answer's form that `score` reads.
        read_truth: a row's columns to the truth; raises DataError where they break the schema.
        score: (completion, truth, mode) -> Score. A completion that cannot be read earns the mode's minimum: it is no exception.
        ranges: smallest and largest reward of each mode.
        perfect: a completion that earns the most that a truth allows.
        make_row: (split, seed) -> row of the embedded data: `image` (RGB, 3 x h x w, [0, 1]), the columns that `read_truth` reads,
            and optionally `target`, the completion that supervised training imitates (`perfect` where there is none). Equal seeds
            give equal rows; the splits train, validation and held_out share no person. None: the task needs the user's data.
        brief: what a model that was trained on the task already is asked, as the embedded one is; the prompt if empty.
        metrics: (completions, truths) -> what the field reports besides the reward, by name. None: the reward says it all.
        most: (truth, mode) -> the most that an answer can earn for a truth, where that may be less than the range's maximum: a row may
            label only part of what the task asks for. The probe holds perfect answers against it. None: each allows the maximum.
        constants: (truths, mode) -> answers among which the best constant one is looked for, beside the perfect answers to the rows.
            For tasks where a compromise that is right for no row may earn more than any of those. None: those are enough.
        whole: truth -> whether it labels all that an answer says. Where it does not, a perfect answer says what nobody labelled, and is no
            target to imitate. None: every truth does.
    """

    name: str
    prompt: str
    read_truth: Callable[[Mapping[str, Any]], Any]
    score: Callable[[str, Any, Mode], Score]
    ranges: Mapping[Mode, tuple[float, float]]
    perfect: Callable[[Any], str]
    make_row: Callable[[str, int], Mapping[str, Any]] | None = None
    brief: str = ""
    metrics: Callable[[Sequence[str], Sequence[Any]], dict[str, float]] | None = None
    most: Callable[[Any, Mode], float] | None = None
    constants: Callable[[Sequence[Any], Mode], Sequence[str]] | None = None
    whole: Callable[[Any], bool] | None = None


def inside(text: str, tag: str) -> str | None:
    """The text between the first `<tag>` and the first `</tag>` after it; None where there is no such pair.

    The same as `re.search("<tag>(.*?)</tag>", text, re.DOTALL)`, whose time is quadratic in the tags that are never closed.

    >>> inside("<answer>1</answer><answer>2</answer>", "answer")
    '1'
    """
    start = text.find(f"<{tag}>") + len(tag) + 2
    end = text.find(f"</{tag}>", start)
    return text[start:end] if start > len(tag) + 1 and end >= 0 else None


def asked_briefly(source: str) -> bool:
    """Whether a model knows its tasks by their brief prompts: the embedded one, and what was trained from it."""
    if source == "embedded":
        return True
    try:
        return read_json(Path(source) / "config.json").get(ASKED) == "brief"
    except (OSError, ValueError):
        return False  # a hub id; what is wrong with a folder, loading it says
