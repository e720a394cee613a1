"""What a preference pair is: a photo, two retouches of it, who prefers which on five dimensions, and where all of it comes from.

A row of `metadata.jsonl` is one pair. Its three pictures are named by `input_file_name`, `a_file_name` and `b_file_name`, the form that
`datasets.load_dataset("imagefolder", ...)` reads as pictures. Verdicts are "a", "b" or "tie", always about the files, never about the
place where an annotator saw them.
"""

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from portraitkit.errors import DataError, nearest
from preference_data.verdict import OTHER, VERDICTS, Verdict, winner

JUDGING = tomllib.loads(Path(__file__).with_name("judging.toml").read_text(encoding="utf-8"))
DIMENSIONS: tuple[str, ...] = tuple(JUDGING["dimensions"])  # In this order everywhere
ASPECTS = (*DIMENSIONS, "overall")  # What a judgement has a verdict on
TITLES: dict[str, str] = {name: said["title"] for name, said in JUDGING["dimensions"].items()}
QUESTIONS: dict[str, str] = {name: said["question"] for name, said in JUDGING["dimensions"].items()}
Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[str, ...] = get_args(Split)
AGE_BANDS = ("child", "teen", "18-29", "30-44", "45-59", "60-74", "75+")
GENDERS = ("woman", "man", "other")
SKIN_TONES = tuple(f"monk-{step}" for step in range(1, 11))  # The Monk Skin Tone scale, 1 (lightest) to 10


@dataclass(frozen=True)
class Fault:
    """One known degradation of a candidate: its kind (see `preference_data.people.degradations`) and strength in (0, 1.1]."""

    kind: str
    strength: float


@dataclass(frozen=True)
class Origin:
    """Where a candidate comes from."""

    generator: str  # name of the generator, or of the retoucher or system that made it; Bradley-Terry scores compare these
    faults: tuple[Fault, ...] = ()  # the known degradations, empty where none was applied or none is known
    seed: int | None = None  # of the generator
    model: str | None = None  # hub id or path of the pipeline, or the file it was read from
    is_label: bool = False  # whether it is the photo's preferred retouch


@dataclass(frozen=True)
class Pair:
    """One pair, pictures as paths relative to the data folder."""

    id: str  # unique in the set
    input: str  # the photo
    a: str  # first candidate
    b: str  # second candidate
    verdicts: dict[str, Verdict] | None = None  # who wins on each of `DIMENSIONS`; None where nobody has judged yet
    overall: Verdict | None = None  # who wins; None where nobody has judged yet
    scores: dict[str, tuple[float, float]] | None = None  # for each dimension the scores of a and b in [1, 5], or None
    reasoning: str = ""  # in words
    annotator: str = ""  # who judged; "degradation": the truth follows from known degradations; "verifiable": from the verifiable rewards
    source: str = ""  # what the photo belongs to: a data set's name, a folder
    origin_a: Origin = field(default_factory=lambda: Origin("unknown"))  # of candidate a
    origin_b: Origin = field(default_factory=lambda: Origin("unknown"))  # of candidate b
    anchor: str | None = None  # the photo's preferred retouch, where one is known
    consent: str = ""  # what the person in the photo agreed to
    licence: str = ""  # of the photo
    age_band: str | None = None  # one of `AGE_BANDS`, or None
    gender: str | None = None  # one of `GENDERS`, or None
    skin_tone: str | None = None  # one of `SKIN_TONES`, or None
    synthetic: bool = False  # whether anything a judge compares was made by code: a painted blemish, a degradation, a morphed person
    identity: str = ""  # who is in the photo; splits are disjoint in it
    split: str = "train"  # "train", "validation" or "held_out"


TEXTS = ("reasoning", "annotator", "source", "consent", "licence", "identity")
CHOICES = {"age_band": AGE_BANDS, "gender": GENDERS, "skin_tone": SKIN_TONES}
FILES = {"input": "input_file_name", "a": "a_file_name", "b": "b_file_name", "anchor": "anchor_file_name"}
NAMES = {column: name for name, column in FILES.items()}
COLUMNS = (*("id", *FILES.values(), "verdicts", "overall", "scores", *TEXTS, "origin_a", "origin_b", *CHOICES), *("synthetic", "split"))


def row_of(pair: Pair) -> dict[str, Any]:
    """A pair as a JSON-able row with every column, the inverse of `pair_of`."""
    values = asdict(pair)
    return {column: values[NAMES.get(column, column)] for column in COLUMNS}


def pair_of(row: dict[str, Any]) -> Pair:
    """Read one row, strictly.

    Raises:
        DataError: a column is unknown, missing, of another type, or holds an impossible value. The message does not say which row.
    """
    unknown = next((key for key in row if key not in COLUMNS), None)
    if unknown is not None:
        raise DataError(f"column {unknown!r} is unknown{nearest(unknown, COLUMNS)}")
    values: dict[str, Any] = {"id": text_of(row, "id")}
    for name, column in FILES.items():
        values[name] = text_of(row, column) if name != "anchor" or row.get(column) is not None else None
    values |= {name: text_of(row, name, "") for name in TEXTS}
    for name, known in CHOICES.items():
        values[name] = None if row.get(name) is None else choice_of(name, row[name], known)
    values["split"] = choice_of("split", row.get("split", "train"), SPLITS)
    values["synthetic"] = row.get("synthetic", False)
    if not isinstance(values["synthetic"], bool):
        raise DataError(f"synthetic {values['synthetic']!r}: must be true or false")
    values |= {"verdicts": read_verdicts(row.get("verdicts")), "scores": read_scores(row.get("scores"))}
    values["overall"] = None if row.get("overall") is None else choice_of("overall", row["overall"], VERDICTS)
    values |= {side: _origin(side, row[side]) for side in ("origin_a", "origin_b") if row.get(side) is not None}
    return Pair(**values)


def read_verdicts(value: Any) -> dict[str, Verdict] | None:
    """Verdicts on all five dimensions, in their order, or None; DataError for any other dimension or verdict."""
    five = {} if value is None else _five("verdicts", value)
    return None if value is None else {name: choice_of(f"verdicts.{name}", verdict, VERDICTS) for name, verdict in five.items()}


def read_scores(value: Any) -> dict[str, tuple[float, float]] | None:
    """Scores of a and b on all five dimensions, or None; DataError for any other dimension or a score outside [1, 5]."""
    if value is None:
        return None
    scores: dict[str, tuple[float, float]] = {}
    for name, both in _five("scores", value).items():
        numbers = [x for x in both if _is_number(x) and 1 <= x <= 5] if isinstance(both, list | tuple) else []
        if len(numbers) != 2 or len(both) != 2:
            raise DataError(f"scores.{name} {both!r}: must be two numbers from 1 to 5, of a and of b")
        scores[name] = (numbers[0], numbers[1])
    return scores


def whole_scores(scores: dict[str, tuple[float, float]], verdicts: dict[str, Verdict] | None) -> dict[str, tuple[int, int]]:
    """The nearest whole scores of a and b, 1 to 5, that say what the verdicts say: 4.5 and 4, won by a, are 5 and 4."""
    whole: dict[str, tuple[int, int]] = {}
    for name, (a, b) in scores.items():
        verdict = verdicts[name] if verdicts else None
        fitting = [(x, y) for x, y in product(range(5, 0, -1), repeat=2) if verdict in (None, winner(x, y))]
        whole[name] = min(fitting, key=lambda both: (both[0] - a) ** 2 + (both[1] - b) ** 2)
    return whole


def contradictions(pair: Pair) -> list[str]:
    """Where a pair's judgement contradicts itself, one sentence each."""
    found = []
    if (pair.verdicts is None) != (pair.overall is None):
        found.append("has verdicts but no overall one" if pair.overall is None else "has an overall verdict but none on the dimensions")
    if pair.verdicts and pair.scores:
        for name, (a, b) in pair.scores.items():
            if (a > b and pair.verdicts[name] == "b") or (b > a and pair.verdicts[name] == "a"):
                found.append(f"{name}: verdict {pair.verdicts[name]}, but scores {a:g} (a) and {b:g} (b)")
    if pair.verdicts and pair.overall:
        decided: set[Verdict] = {verdict for verdict in pair.verdicts.values() if verdict != "tie"}
        if len(decided) == 1 and pair.overall == OTHER[next(iter(decided))]:
            found.append(f"overall {pair.overall}, but no dimension is won by it")
        if not decided and pair.overall != "tie":
            found.append(f"overall {pair.overall}, but every dimension is a tie")
    return found


def _five(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{name}: must be an object with {', '.join(DIMENSIONS)}")
    if (key := next((key for key in value if key not in DIMENSIONS), None)) is not None:
        raise DataError(f"{name}.{key}: unknown dimension{nearest(str(key), DIMENSIONS)}")
    if (key := next((key for key in DIMENSIONS if key not in value), None)) is not None:
        raise DataError(f"{name}.{key}: missing; all five dimensions are needed")
    return {dimension: value[dimension] for dimension in DIMENSIONS}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def text_of(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text of a column, `default` where it is missing or null; without a default, DataError for a missing or an empty one."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (default is None and not value.strip()):
        shown = "is missing" if value is None else f"{value!r}"
        raise DataError(f"{key} {shown}: must be text{'' if default is not None else ' that is not empty'}")
    return value


def choice_of(key: str, value: Any, known: tuple[str, ...]) -> Any:
    """The value of a column; DataError where it is none of the known ones."""
    if value not in known or not isinstance(value, str):
        raise DataError(f"{key} {value!r}: must be one of {', '.join(known)}{nearest(str(value), known)}")
    return value


def _origin(side: str, value: Any) -> Origin:
    known = ("generator", "faults", "seed", "model", "is_label")
    if not isinstance(value, dict):
        raise DataError(f"{side}: must be an object with {', '.join(known)}")
    if (unknown := next((key for key in value if key not in known), None)) is not None:
        raise DataError(f"{side}: key {unknown!r} is unknown; use {', '.join(known)}")
    faults = value.get("faults") or []
    if not isinstance(faults, list | tuple):
        raise DataError(f"{side}.faults: must be a list of objects with kind and strength")
    read = []
    for fault in faults:
        if not isinstance(fault, dict) or not isinstance(fault.get("kind"), str) or not _is_number(fault.get("strength")):
            raise DataError(f"{side}.faults {fault!r}: needs a text kind and a finite strength")
        read.append(Fault(fault["kind"], float(fault["strength"])))
    seed, model, is_label = value.get("seed"), value.get("model"), value.get("is_label", False)
    if not (seed is None or (isinstance(seed, int) and not isinstance(seed, bool))):
        raise DataError(f"{side}.seed {seed!r}: must be a whole number or null")
    if not (model is None or isinstance(model, str)) or not isinstance(is_label, bool):
        raise DataError(f"{side}: model must be text or null, is_label true or false")
    return Origin(text_of(value, "generator"), tuple(read), seed, model, is_label)
