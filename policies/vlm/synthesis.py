"""What stage 3 asks a model, and what it accepts: the truth stands in the prompt, and an answer is kept only if it repeats it exactly."""

import re
from collections.abc import Iterator, Sequence

from policies.vlm.tasks.emotion import TASK, UNIT
from policies.vlm.tasks.emotion_metrics import read_answer
from preference_data.emotion_rows import ACTION_UNITS, EMOTIONS, EmotionRow

KNOWN = "\n\nWhat is known about this face: {facts}. Describe how this is seen in this face. {rules} Do not mention that you were told."
MENDED = "\n\nYour last answer was:\n{answer}\n\nIt cannot be used:\n{errors}\nWrite the whole answer again without these errors."

SPELT = r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty"
SPELT_UNIT = re.compile(rf"\b(?:AUs?|action units?)\W+(?:{SPELT})\b", re.IGNORECASE)


def write_prompt(row: EmotionRow, *, answer: str = "", errors: Sequence[str] = ()) -> str:
    """The task's instruction with the row's truth, and what was wrong with the last answer."""
    facts, rules = [], []
    if row.AUs is not None:
        named = ", ".join(f"{unit} {ACTION_UNITS[int(unit.removeprefix('AU'))]}" for unit in row.AUs)
        facts.append(f"the action units that show are {named}" if named else "no action unit shows")
        rules.append("Name exactly these action units and no other number." if row.AUs else "Name no action unit and no number.")
    else:
        rules.append("Write each action unit by itself, as (AU4), and no other number.")
    if row.labels:
        facts.append(f"the emotion is {row.labels[0]}")
        rules.append(f"The word inside <answer></answer> is {row.labels[0]}.")
    text = TASK.prompt + KNOWN.format(facts="; ".join(facts), rules=" ".join(rules))
    if errors:
        text += MENDED.format(answer=answer, errors="\n".join(f"- {error}" for error in errors))
    return text


def find_errors(row: EmotionRow, completion: str) -> list[str]:
    """Why a completion cannot be kept: empty if both tags stand, and units and emotion equal the truth where the row labels them.

    Stricter than the reward, which reads what it can: every number must be a unit by itself, and a unit may not be named by its FACS
    name alone unless it shows, so that a text that says more than the truth is no target to imitate.
    """
    read = read_answer(completion)
    if not read.readable:
        return ["the answer must be <think>one paragraph</think><answer>one word</answer> and nothing else"]
    errors = []
    if row.AUs is not None:
        truth = {int(unit.removeprefix("AU")) for unit in row.AUs}
        errors += [f"AU{unit} shows, but is not named" for unit in sorted(truth - read.units)]
        errors += [f"AU{unit} is named, but does not show" for unit in sorted(read.units - truth)]
        said = (unit for unit in sorted(ACTION_UNITS.keys() - truth - read.units) if _says(read.reasoning, ACTION_UNITS[unit]))
        errors += [f"{ACTION_UNITS[unit]!r} is AU{unit}, which does not show" for unit in said]
    else:
        errors += [f"AU{unit} is not in the list" for unit in sorted(read.units - ACTION_UNITS.keys())]
    errors += [f"{found!r}: each action unit must stand by itself, as (AU4), with no other number" for found in _loose(read.reasoning)]
    wanted = row.labels or EMOTIONS
    if read.emotion not in wanted:
        errors.append(f"the answer is {read.emotion!r}, but must be {' or '.join(wanted)}")
    if not read.reasoning:
        errors.append("<think></think> is empty")
    return errors


def _says(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text, re.IGNORECASE) is not None


def _loose(text: str) -> Iterator[str]:
    """What holds a number that is not read as a unit, as "(AU6+12)", "AU100", "12", and units whose number is spelt."""
    rest = UNIT.sub(lambda unit: "U" * len(unit[0]), text)
    for word in re.finditer(r"\S+", rest):
        if any(character.isnumeric() and not character.isalpha() for character in word[0]):
            yield text[word.start() : word.end()][:40]
    yield from (spelt[0] for spelt in SPELT_UNIT.finditer(text))


def unverifiable(row: EmotionRow, need: str) -> str:
    """Why a row's answers could not be checked; empty if they can."""
    missing = [name for name, value in (("action units", row.AUs), ("emotion", row.labels or None)) if value is None]
    if len(missing) == 2 or (missing and need == "both"):
        return f"the row labels no {' and no '.join(missing)}: an answer cannot be checked exactly"
    return ""
