"""What stage 3 asks a model, and what it accepts: the truth stands in the prompt, and an answer is kept only if it repeats it exactly."""

from collections.abc import Sequence

from policies.vlm.emotion_metrics import read_answer
from policies.vlm.tasks.emotion import TASK
from preference_data.emotion_labels import ACTION_UNITS, EMOTIONS
from preference_data.emotion_rows import EmotionRow

KNOWN = "\n\nWhat is known about this face: {facts}. Describe how this is seen in this face. {rules} Do not mention that you were told."
MENDED = "\n\nYour last answer was:\n{answer}\n\nIt cannot be used:\n{errors}\nWrite the whole answer again without these errors."


def write_prompt(row: EmotionRow, *, answer: str = "", errors: Sequence[str] = ()) -> str:
    """The task's instruction with the row's truth, and what was wrong with the last answer."""
    facts, rules = [], []
    if row.AUs is not None:
        named = ", ".join(f"{unit} {ACTION_UNITS[int(unit.removeprefix('AU'))]}" for unit in row.AUs)
        facts.append(f"the action units that show are {named}" if named else "no action unit shows")
        rules.append("Name exactly these action units and no other number." if row.AUs else "Name no action unit.")
    if row.labels:
        facts.append(f"the emotion is {row.labels[0]}")
        rules.append(f"The word inside <answer></answer> is {row.labels[0]}.")
    text = TASK.prompt + KNOWN.format(facts="; ".join(facts), rules=" ".join(rules))
    if errors:
        text += MENDED.format(answer=answer, errors="\n".join(f"- {error}" for error in errors))
    return text


def find_errors(row: EmotionRow, completion: str) -> list[str]:
    """Why a completion cannot be kept: empty if both tags stand, and units and emotion equal the truth where the row labels them."""
    read = read_answer(completion)
    if not read.readable:
        return ["the answer must be <think>one paragraph</think><answer>one word</answer> and nothing else"]
    errors = []
    if row.AUs is not None:
        truth = {int(unit.removeprefix("AU")) for unit in row.AUs}
        errors += [f"AU{unit} shows, but is not named" for unit in sorted(truth - read.units)]
        errors += [f"AU{unit} is named, but does not show" for unit in sorted(read.units - truth)]
    elif any(unit not in ACTION_UNITS for unit in read.units):
        errors.append("a named action unit is not in the list")
    wanted = row.labels or EMOTIONS
    if read.emotion not in wanted:
        errors.append(f"the answer is {read.emotion!r}, but must be {' or '.join(wanted)}")
    if not read.reasoning:
        errors.append("<think></think> is empty")
    return errors


def unverifiable(row: EmotionRow, need: str) -> str:
    """Why a row's answers could not be checked; empty if they can."""
    missing = [name for name, value in (("action units", row.AUs), ("emotion", row.labels or None)) if value is None]
    if len(missing) == 2 or (missing and need == "both"):
        return f"the row labels no {' and no '.join(missing)}: an answer cannot be checked exactly"
    return ""
