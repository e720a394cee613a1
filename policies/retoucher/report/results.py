"""What an `align-retoucher` run found: its files read and checked, its measures, and sentences that claim no more than the figures."""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portraitkit.errors import DataError, RunFolderError
from portraitkit.files.jsonl import read_json, read_objects
from portraitkit.report.charts import as_float
from portraitkit.report.page import number, signed
from portraitkit.stats import LEAST_PEOPLE
from reward_models.judge.reward import FORMS, split_argument

Json = dict[str, Any]


@dataclass(frozen=True)
class Meaning:
    """How a measured value is called and read; `least` is the smallest change of the mean that counts as better or worse."""

    title: str
    reads: str
    least: float = 0.005


MEANINGS = {name: Meaning(**row) for name, row in tomllib.loads(Path(__file__).with_name("meanings.toml").read_text("utf-8")).items()}
COUNTED = {
    "unscorable": "candidates could not be scored and were left out",
    "judge_unreadable": "answers of the judge could not be read; they were never scored",
    "skipped_updates": "updates were skipped because loss or gradient was not finite",
}


def meaning_of(name: str) -> Meaning:
    """Its title and how it reads; the bare name for rewards of the user's own."""
    if name.startswith("judge:"):
        path, form = split_argument(name.removeprefix("judge:"))
        return Meaning(f"Judge {path}", f"{form.replace('_', ' ')}: {FORMS[form]}")
    return MEANINGS.get(name, Meaning(name, ""))


@dataclass(frozen=True)
class Measure:
    """One line of the result: means on the held-out photos; not finite where unknown."""

    name: str  # as logged
    higher_is_better: bool  # rewards are, errors are not
    untouched: float  # mean of the photos as they are
    before: float  # mean of the base policy's retouches
    after: float  # mean of the aligned policy's retouches
    gain: float  # after minus before
    low: float  # lower end of the gain's 95 % interval
    high: float  # upper end
    people: float = math.inf  # that it is measured on

    @property
    def meaning(self) -> Meaning:
        """Its title and how it reads; the bare name for rewards of the user's own."""
        return meaning_of(self.name)

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes 0, else `unclear`; empty where nothing is known.

        A change that is smaller than its `Meaning.least` is `too small`, and fewer than `LEAST_PEOPLE` are `too few people`.
        """
        if self.people < LEAST_PEOPLE:
            return "too few people" if self.people else ""
        if not math.isfinite(self.low) or not math.isfinite(self.high):
            return ""
        if self.low <= 0 <= self.high:
            return "unclear"
        if abs(self.gain) < self.meaning.least:
            return "too small"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"

    @property
    def interval(self) -> str:
        """The 95 % interval of the gain, for people."""
        return f"{signed(self.low)} to {signed(self.high)}" if math.isfinite(self.low) else "–"


@dataclass(frozen=True)
class Photo:
    """A held-out photo: its place in the set, its name, what was measured on the base's and the aligned retouch, who is in it."""

    row: int
    name: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    person: str = ""

    @property
    def gain(self) -> float:
        """Change of the reward; not finite where one of the two could not be scored."""
        return self.after.get("reward", math.nan) - self.before.get("reward", math.nan)


@dataclass(frozen=True)
class Run:
    """The files of a run folder, read."""

    folder: Path
    config: Json
    environment: Json
    summary: Json
    train: list[Json]
    validation: list[Json]
    photos: list[Photo]

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards in use."""
        return [str(name) for key in ("rewards", "reward") for name in self.config.get(key) or []]

    @property
    def judges(self) -> list[str]:
        """Those of them that are judges."""
        return [name for name in self.rewards if name.startswith("judge:")]


def read_run(folder: Path) -> Run:
    """Read everything a report is made of; missing pictures and per-photo values are fine.
    RunFolderError: a file is missing or is not valid JSON."""
    values = folder / "held_out" / "values.jsonl"
    try:
        lines = [row for _, row in read_objects(folder / "metrics.jsonl")]
        measured = [row for _, row in read_objects(values)] if values.is_file() else []
    except DataError as error:
        raise RunFolderError(f"{error}; a report needs the folder of a finished align-retoucher run") from error
    photos = []
    for row, line in enumerate(measured):
        name = str(line.get("id", row))
        photos.append(Photo(row, name, as_floats(line.get("before")), as_floats(line.get("after")), str(line.get("person", name))))
    files = (_read_json(folder / f"{name}.json") for name in ("config", "environment", "summary"))
    return Run(folder, *files, *([line for line in lines if line.get("kind") == kind] for kind in ("train", "validation")), photos)


def read_measures(run: Run) -> dict[str, Measure]:
    """Everything measured on the held-out photos, in reading order."""
    held_out, untouched = run.summary.get("held_out") or {}, as_floats(run.summary.get("untouched"))
    rewards = run.rewards
    out = {}
    for name in ordered(held_out, rewards):
        change = held_out[name]
        ends = map(as_float, change.get("ci95") or (None, None))
        means = (untouched.get(name, math.nan), *(as_float(change.get(key)) for key in ("before", "after", "gain")))
        higher = name in ("reward", "verifiable", *rewards)
        out[name] = Measure(name, higher, *means, *ends, as_float(change.get("people", math.inf)))
    return out


def _read_json(path: Path) -> Json:
    try:
        value = read_json(path)
    except OSError as error:
        raise RunFolderError(f"{path}: missing; a report needs the folder of a finished align-retoucher run") from error
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}: not valid JSON ({error.msg}, line {error.lineno}); is the run damaged?") from error
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: holds {type(value).__name__}, expected an object")
    return value


def as_floats(values: object) -> dict[str, float]:
    """A logged object of values as floats; empty where there is none."""
    return {str(name): as_float(value) for name, value in values.items()} if isinstance(values, dict) else {}


# ---- in words


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if not math.isfinite(seconds):
        return "–"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def headline(reward: Measure | None) -> str:
    """The result in one sentence."""
    if reward is None or not reward.verdict:
        return "No held-out photo could be scored before and after, so this run has no result."
    what = {
        "better": "The aligned retoucher is measurably better than its base",
        "worse": "The aligned retoucher is measurably worse than its base",
        "unclear": "No measurable change",
        "too small": f"No change that matters (below {number(reward.meaning.least)})",
        "too few people": f"Too few people ({reward.people:.0f}) for a verdict",
    }[reward.verdict]
    ends = f" (95 % interval {reward.interval} over people)" if math.isfinite(reward.low) else ""
    return (
        f"{what}: the reward on held-out photos went from {number(reward.before)} to {number(reward.after)}, "
        f"a change of {signed(reward.gain)}{ends}."
    )


def findings(measures: Mapping[str, Measure]) -> list[tuple[str, str, str]]:
    """What happened to blemishes, pores, the person and the lips: (subject, verdict, sentence) where it was measured."""
    told = {
        "blemish_residual": ("Blemishes", "{after:.0f} % of the blemish error is left; the base left {before:.0f} %, the photo has 100 %."),
        "texture_error": ("Pores", "Texture error {moved}; 0 keeps every pore, about 1 is plastic."),
        "identity_distance": ("The person", "Identity distance {moved}; two people are about 0.6 apart."),
        "lip_dE": ("Lips", "Their colour's difference from the photo {moved}; up to 2 is hardly seen."),
    }
    out = []
    for name, (subject, text) in told.items():
        if (one := measures.get(name)) is not None and one.verdict:
            numbers = f"{number(one.before)} to {number(one.after)}"
            moved = f"did not clearly change ({numbers})" if one.verdict == "unclear" else f"went from {numbers}"
            out.append((subject, one.verdict, text.format(before=100 * one.before, after=100 * one.after, moved=moved)))
    return out


def caveats(config: Mapping[str, object], summary: Mapping[str, object]) -> list[str]:
    """What a reader must know before believing the figures."""
    photos = "The photos are the user's own: no clean portrait is known, so blemishes are found by a detector, which can err."
    if config.get("photos") == "embedded":
        photos = "The photos are synthetic: morphs of two real portraits with painted blemishes, so that the clean face is known. "
        photos += "The held-out people were never trained on, but they lie between the same two portraits."
    elif config.get("anchors") == "painted":
        photos = "The photos are the user's own, taken as clean portraits; blemishes with known masks are painted onto them."
    kept = "the adapter that was best on separate validation photos" if config.get("keep_best") else "the last adapter"
    return [
        photos,
        f"Every figure and picture of the result is made by the plain ODE sampler, without any anchor, with {kept}. "
        "The held-out photos were looked at twice: before and after training.",
        "Rollout reward is not progress: rollouts are noisy, and under guidance the anchor leaks into them. "
        "It is plotted apart, for diagnosis only.",
        "Intervals resample the people of this one run; where nobody said who is who, each photo is a person. They say nothing about "
        "other seeds.",
        *(f"{count} {text}." for key, text in COUNTED.items() if isinstance(count := summary.get(key), int) and count > 0),
    ]


def warnings(measures: Mapping[str, Measure]) -> list[str]:
    """Results that would be easy to overlook."""
    reward = measures.get("reward")
    if reward is not None and math.isfinite(reward.untouched) and reward.after <= reward.untouched:
        return [f"Doing nothing scores as well or better: the untouched photos have reward {number(reward.untouched)}."]
    return []


def ordered(names: Iterable[str], rewards: Iterable[str]) -> list[str]:
    """Names in reading order: the combined reward, its parts as configured, then the errors."""
    order = {name: place for place, name in enumerate(dict.fromkeys(["reward", *rewards, *MEANINGS]))}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))
