"""What an answer about a face's emotion says, and what the field reports of many: F1 of units, accuracy, confusion, ROUGE-L, REGE.

Nothing is dropped in silence. An answer that cannot be read names no unit and no emotion: it misses every true unit and its emotion
is wrong. Rows without units (or without an emotion) are left out of the unit (emotion) figures, and the number of rows that count
stands beside each figure.

The units that are scored are an explicit list (`preference_data.emotion_rows.AU_LISTS` or one's own); units outside it count
neither in the truth nor in the answer. Micro F1 pools the whole list. Macro F1 is the mean over the listed units that occur in the
truth, as in Facial-R1's evaluation: a unit without a positive row has no F1. All figures are shares in [0, 1], except ROUGE-L, REGE
and their parts, which are published in per cent.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portraitkit.errors import ConfigError, nearest
from portraitkit.vlm.task import Mode, inside
from preference_data.emotion_rows import AU_LISTS, EMOTIONS

OTHER = "other"
DRAWS = 1000
ROUGE = "rouge_score, rougeL, F measure, Porter stemmer; the text inside <think> against the description"
BODY = r"((?:(?!</?(?:think|answer)>).)*)"
WHOLE = re.compile(rf"\s*<think>{BODY}</think>\s*<answer>\s*([^\W\d_]+)\s*</answer>\s*", re.DOTALL)
"""What `fixed` asks for; an answer is one word."""
TURN = re.compile(r"</think>\s*<answer>")
UNIT = re.compile(r"\bAU\s?0*([1-9]\d?)\b", re.IGNORECASE)
CODED_UNIT = re.compile(r"AU([1-9][0-9]?)(?!\d)")  # As the source's code reads a unit, one that a list can hold: AU4, not AU04
CODED_THINK = re.compile(r"<(/?)think>", re.IGNORECASE)


@dataclass(frozen=True)
class Expression:
    """The truth of a row: its action units and its emotion, None where the row does not label them."""

    units: frozenset[int] | None
    emotion: str | None
    unknown: frozenset[int] = frozenset()  # units that nobody coded on it: an answer may name them or not


@dataclass(frozen=True)
class Answer:
    """What a completion says."""

    units: frozenset[int]  # named inside `<think>`; in `paper`, without such tags, anywhere
    emotion: str  # the answer in lower case (in `paper` its first word as it stands), an emotion or not; empty where there is none
    reasoning: str  # the text inside `<think>`
    readable: bool  # it has the form that the prompt asks for


def read_answer(completion: str, mode: Mode = "fixed") -> Answer:
    """Read a completion for the figures: `fixed` takes it only in the form asked for, `paper` as the source's evaluation does.

    That (utils/eval_utils.py) takes the units inside the first `<think>` and the first word inside the first `<answer>`, each with its
    case; without such tags it looks through the whole text.
    """
    if mode == "fixed":
        whole = WHOLE.fullmatch(completion)
        think, word = (whole[1], whole[2].lower()) if whole else ("", "")
        return Answer(frozenset(int(number) for number in UNIT.findall(think)), word, think.strip(), whole is not None)
    think, answer = inside(completion, "think"), inside(completion, "answer")
    units = CODED_UNIT.findall(completion if think is None else think)
    word = re.search(r"[^,;，；\s]+", completion if answer is None else answer)
    return Answer(frozenset(int(number) for number in units), word[0] if word else "", (think or "").strip(), published_form(completion))


def read_rewarded(completion: str) -> tuple[frozenset[int | str], str]:
    """Units and emotion as the source's reward reads them (grpo_jsonl.py): another way than its evaluation's.

    Returns:
        What stands as `AU` and digits inside the first `<think>`, whatever the case: the number, or the text where no list has such a
        unit, as AU04; and the text of the last `<answer>`, without tags the whole text, with its case.
    """
    tags = CODED_THINK.finditer(completion)
    start = next((tag.end() for tag in tags if not tag[1]), None)
    end = next((tag.start() for tag in tags if tag[1]), None)
    named = re.findall(r"AU\d+", "" if start is None or end is None else completion[start:end].upper())
    units = frozenset(int(found[1]) if (found := CODED_UNIT.fullmatch(text)) else text for text in named)
    answer, place = completion, 0
    while (opened := completion.find("<answer>", place)) >= 0 and (closed := completion.find("</answer>", opened)) >= 0:
        answer, place = completion[opened + len("<answer>") : closed], closed
    return units, answer.strip()


def published_form(completion: str) -> bool:
    """Whether `<think>.*?</think>\\s*<answer>.*?</answer>` matches the whole completion, as their code asks; in linear time."""
    turned = TURN.search(completion, len("<think>"))
    ends = completion.startswith("<think>") and completion.endswith("</answer>")
    return ends and turned is not None and turned.end() <= len(completion) - len("</answer>")


def au_list(name: str) -> tuple[int, ...]:
    """A list of units by its name, or as numbers with commas, as in "1,2,4"; ConfigError for no such list."""
    if name in AU_LISTS:
        return AU_LISTS[name]
    parts = [part.strip().upper().removeprefix("AU") for part in name.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 99 for part in parts):
        raise ConfigError(f"--au-list {name}: unknown{nearest(name, AU_LISTS)}; use {', '.join(AU_LISTS)}, or numbers such as 1,2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def count_units(answers: Sequence[Answer], truths: Sequence[Expression], units: Sequence[int]) -> np.ndarray:
    """Hits, false alarms and misses: integers of shape (rows with units, 3, units). What nobody coded on a row is none of them."""
    both = zip(answers, truths, strict=True)
    named = [(answer.units - truth.unknown, truth.units) for answer, truth in both if truth.units is not None]
    said = np.array([[unit in given for unit in units] for given, _ in named], dtype=bool).reshape(len(named), len(units))
    true = np.array([[unit in wanted for unit in units] for _, wanted in named], dtype=bool).reshape(len(named), len(units))
    return np.stack([said & true, said & ~true, ~said & true], axis=1).astype(np.int64)


def f1_of(counts: np.ndarray) -> np.ndarray:
    """F1 of hits, false alarms and misses on the second-last axis of (..., 3, units); NaN where the truth has no positive.

    Returns:
        Of shape (..., units), in [0, 1].
    """
    hits, alarms, misses = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    with np.errstate(invalid="ignore"):
        return np.where(hits + misses > 0, 2 * hits / (2 * hits + alarms + misses), np.nan)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the units that occur in the truth; NaN where none does. Takes what `f1_of` takes, drops the last axis."""
    each = f1_of(counts)
    known = ~np.isnan(each)
    with np.errstate(invalid="ignore"):
        return np.where(known, each, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of the counts pooled over all units; NaN where nothing is true. Takes what `f1_of` takes, drops the last axis."""
    return f1_of(counts.sum(-1, keepdims=True))[..., 0]


def confusion(answers: Sequence[Answer], truths: Sequence[Expression]) -> dict[str, dict[str, int]]:
    """Rows of each true emotion by what was answered; `other` is everything that is no emotion. Only emotions that occur are rows."""
    said = [(truth.emotion, one.emotion if one.emotion in EMOTIONS else OTHER) for one, truth in zip(answers, truths, strict=True)]
    occurring = {emotion for emotion, _ in said}
    return {name: {column: said.count((name, column)) for column in (*EMOTIONS, OTHER)} for name in EMOTIONS if name in occurring}


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F measure in per cent, by the package rouge_score with its stemmer.

    EmoLA's figures come from another package (rouge, without a stemmer) and are not the same quantity to the last decimal.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in zip(texts, references, strict=True)]
    return 100 * sum(scores) / len(scores)


def rege(recognition: float, rouge: float) -> float:
    """REGE (EmoLA): recognition plus generation, `recognition` being an accuracy or F1 in [0, 1] and `rouge` in per cent; at most 200."""
    return 100 * recognition + rouge


def headline(completions: Sequence[str], truths: Sequence[Expression]) -> dict[str, float]:
    """The few figures of a run: `au_macro_f1` and `au_micro_f1` over the prompt's 30 units, `emotion_accuracy`, `unreadable`.

    A figure that no row can give is NaN. `unreadable` (lower is better) is the share of completions without the form asked for.
    """
    answers = [read_answer(completion) for completion in completions]
    counts = count_units(answers, truths, AU_LISTS["all"]).sum(0)
    right = [float(answer.emotion == truth.emotion) for answer, truth in zip(answers, truths, strict=True) if truth.emotion is not None]
    return {
        "au_macro_f1": float(macro_f1(counts)),
        "au_micro_f1": float(micro_f1(counts)),
        "emotion_accuracy": float(np.mean(right)) if right else float("nan"),
        "unreadable": float(np.mean([not answer.readable for answer in answers])),
    }


def report(
    completions: Sequence[str],
    truths: Sequence[Expression],
    *,
    units: Sequence[int] = AU_LISTS["all"],
    mode: Mode = "fixed",
    descriptions: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is reported of an evaluation, as JSON values: `rows`, `unreadable`, `action_units`, `emotions`, `rouge_l` and `rege`
    of the rows with a description, and the figures of each of the `groups` (a name a row) where these are given. `units` are scored, see
    `au_list`; completions are read as `read_answer` does in this mode."""
    answers = [read_answer(completion, mode) for completion in completions]
    result: dict[str, Any] = {"mode": mode, "au_list": [f"AU{unit}" for unit in units], **_figures(answers, truths, units, seed)}
    if descriptions is not None and any(text.strip() for text in descriptions):
        pairs = [(answer.reasoning, text) for answer, text in zip(answers, descriptions, strict=True) if text.strip()]
        rouge = rouge_l(*zip(*pairs, strict=True))
        recognitions = {"action_units": result["action_units"]["macro_f1"], "emotions": result["emotions"]["accuracy"]}
        result["rouge_l"] = {"per_cent": rouge, "rows": len(pairs), "package": ROUGE}
        result["rege"] = {name: None if value is None else rege(value, rouge) for name, value in recognitions.items()}
    if groups is not None:
        result["groups"] = {}
        for name in sorted(set(groups)):
            members = [place for place, group in enumerate(groups) if group == name]
            figures = _figures([answers[i] for i in members], [truths[i] for i in members], units, seed)
            del figures["emotions"]["confusion"], figures["action_units"]["units"]
            result["groups"][name] = figures
    return result


def _figures(answers: Sequence[Answer], truths: Sequence[Expression], units: Sequence[int], seed: int) -> dict[str, Any]:
    counts = count_units(answers, truths, units)
    total = counts.sum(0)
    right = np.array([answer.emotion == truth.emotion for answer, truth in zip(answers, truths, strict=True) if truth.emotion is not None])
    each = f1_of(total)
    return {
        "rows": len(answers),
        "unreadable": float(np.mean([not answer.readable for answer in answers])) if answers else None,
        "action_units": {
            "rows": len(counts),
            "macro_f1": _number(macro_f1(total)),
            "macro_f1_ci95": _interval(counts, macro_f1, seed),
            "micro_f1": _number(micro_f1(total)),
            "micro_f1_ci95": _interval(counts, micro_f1, seed),
            "units_with_positives": int((~np.isnan(each)).sum()),
            "units": {
                f"AU{unit}": {"f1": _number(score), "hits": int(hits), "false_alarms": int(alarms), "misses": int(misses)}
                for unit, score, (hits, alarms, misses) in zip(units, each, total.T, strict=True)
            },
        },
        "emotions": {
            "rows": len(right),
            "accuracy": float(right.mean()) if len(right) else None,
            "accuracy_ci95": _interval(right.astype(np.float64), lambda sums: sums / len(right), seed),
            "confusion": confusion(answers, truths),
        },
    }


def _interval(rows: np.ndarray, statistic: Any, seed: int) -> list[float] | None:
    """Percentile bootstrap over rows of a statistic of their sum; None for fewer than two rows."""
    if len(rows) < 2:
        return None
    generator = np.random.default_rng(seed)
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    sums = [generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=100) @ flat for _ in range(DRAWS // 100)]
    values = statistic(np.concatenate(sums).reshape(DRAWS, *rows.shape[1:]))
    values = values[~np.isnan(values)]
    return [float(value) for value in np.quantile(values, (0.025, 0.975))] if len(values) else None


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
