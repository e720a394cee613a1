"""Reasoning in words: written where nobody gave any, and checked against the answer: by rules, or by a natural-language-inference model."""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from portraitkit.errors import ConfigError, WeightsError, reason_of
from portraitkit.runs.checkpoint import check_weights
from preference_data.contract import Answer
from preference_data.schema import DIMENSIONS, TITLES
from preference_data.verdict import NUMBERS

Coherence = Callable[[Answer], float]
DEGREES = {
    5: "as a careful professional would do it",
    4: "good, with a slight fault",
    3: "with a fault that is seen at once",
    2: "with a strong fault",
    1: "spoiled",
}
_BETWEEN = r"\s+(?:(?!(?:not|no|never|neither|image)\b)[\w-]+\s+){0,3}?"
CLAIM = re.compile(
    rf"\bimage\s?(?P<better>[12]){_BETWEEN}(?:better|best|superior|stronger|preferred|preferable|wins?|won)\b"
    rf"|\bimage\s?(?P<worse>[12]){_BETWEEN}(?:worse|worst|inferior|weaker|loses?|lost)\b"
    r"|\b(?:prefer|choose|favou?r)s?\s+image\s?(?P<chosen>[12])\b"
    r"|(?<!not )(?<!n't )\b(?P<alike>alike|equal(?:ly)?|no difference|the same)\b",
    re.IGNORECASE,
)
OVERALL = re.compile(
    r"(?:^|(?<=[.!?;]\s)|(?<=\n))(?:overall|in all|altogether|all in all|in the end|in conclusion|in short)\b[^.\n]*", re.IGNORECASE
)
"""A sentence that begins as verdicts do."""


def reason(answer: Answer) -> str:
    """One sentence a dimension and one overall, that say what the scores say.

    >>> from preference_data.schema import DIMENSIONS
    >>> reason(Answer(dict.fromkeys(DIMENSIONS, (5, 3)), "first", "")).splitlines()[-1]
    'Overall, Image1 is better.'
    """
    lines = []
    for name in DIMENSIONS:
        first, second = answer.scores[name]
        end = "both are alike" if first == second else f"Image{1 if first > second else 2} is better"
        lines.append(f"{TITLES[name]}: Image1 is {DEGREES[first]}, Image2 is {DEGREES[second]}; {end}.")
    return "\n".join([*lines, f"Overall, Image{NUMBERS[answer.better]} is better."])


def words_agree(answer: Answer) -> bool:
    """Whether what the reasoning claims about a dimension, and overall, is what the scores and the choice say.

    A claim is that one image is better, worse, preferred, wins or loses, or that both are alike, in these words and without a negation.
    After a dimension's title and a colon it is about that dimension, up to the next title; in a sentence that begins with "Overall" or
    the like, or where no title stands before it, about the choice. The last claim of a part counts; what is not claimed agrees.

    >>> wrong = Answer(dict.fromkeys(DIMENSIONS, (5, 3)), "first", "Clarity: Image2 is much better.")
    >>> words_agree(wrong)
    False
    """
    text = answer.reasoning
    verdicts = [found for sentence in OVERALL.findall(text) if (found := _claim(sentence)) is not None]
    text = OVERALL.sub("", text)
    places = sorted((at, name) for name in DIMENSIONS if (at := text.casefold().find(TITLES[name].casefold() + ":")) >= 0)
    before = _claim(text[: places[0][0]] if places else text)
    verdict = verdicts[-1] if verdicts else before
    if verdict is not None and verdict != (1 if answer.better == "first" else -1):
        return False
    for (start, name), (end, _) in pairwise([*places, (len(text), "")]):
        said = _claim(text[start:end])
        first, second = answer.scores[name]
        if said is not None and said != (first > second) - (first < second):
            return False
    return True


def _claim(text: str) -> int | None:
    """What the last claim says: 1 for the first image, -1 for the second, 0 alike; None without a claim."""
    claims = list(CLAIM.finditer(text))
    if not claims:
        return None
    last = claims[-1]
    if last["alike"]:
        return 0
    better = (last["better"] or last["chosen"]) == "1" or last["worse"] == "2"
    return 1 if better else -1


def deterministic(answer: Answer) -> float:
    """1 where the choice has not the lower average and no claim of the reasoning contradicts the scores, else 0."""
    return float(answer.coherent and words_agree(answer))


class NliCoherence:
    """Probability that the reasoning entails "ImageX is better", in [0, 1], as BeautyGRPO's DeBERTa-v3 gives it.

    0 where the choice has the lower average, whatever the words say. Hackable by reasoning that only repeats the conclusion: keep the
    rewards of the dimensions beside it.

    The source is a local folder or a hub id of a sequence classifier with one label for entailment; see `check_coherence`.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_coherence(f"nli:{source}")
        self.tokenizer = _loaded(AutoTokenizer, source)
        self.model = _loaded(AutoModelForSequenceClassification, source).to(device).eval()
        check_weights(f"--coherence nli:{source}", self.model)
        self.entailment = _entailment(source, self.model.config.id2label)

    @torch.inference_mode()
    def __call__(self, answer: Answer) -> float:
        if not answer.coherent or not answer.reasoning.strip():
            return 0.0
        inputs = self.tokenizer(
            answer.reasoning,
            f"Image{NUMBERS[answer.better]} is better",
            truncation="only_first",
            max_length=min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings),
            return_tensors="pt",
        )
        logits = self.model(**inputs.to(self.model.device)).logits[0]
        return float(logits.float().softmax(0)[self.entailment])


def _loaded(kind: Any, source: str) -> Any:
    try:
        return kind.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"--coherence nli:{source}: could not be loaded ({reason_of(error)}); give a local folder or a hub id"
        ) from error


def _entailment(source: str, id2label: Mapping[int, str]) -> int:
    labels = {int(place): str(label).casefold() for place, label in id2label.items()}
    found = [place for place, label in labels.items() if label.startswith("entail")]
    if len(found) != 1:
        raise ConfigError(f"--coherence nli:{source}: its labels are {', '.join(labels.values())}; one must be entailment")
    return found[0]


def check_coherence(which: str) -> None:
    """Refuse a local NLI model that is not there or is none, without reading its weights; a hub id is not looked up.
    WeightsError: no such folder, or no model in it.
    ConfigError: none of its labels, or more than one, is entailment."""
    source = which.partition(":")[2]
    folder = Path(source)
    if not source or (not folder.is_dir() and not folder.is_absolute() and not source.startswith(".") and source.count("/") < 2):
        return
    if not folder.is_dir():
        raise WeightsError(f"--coherence nli:{source}: no such folder; give a local folder or a hub id of an NLI model")
    from transformers import AutoConfig

    _entailment(source, _loaded(AutoConfig, source).id2label or {})


def load_coherence(which: str, device: str = "cpu") -> Coherence:
    """`deterministic`, or `nli:` and a folder or hub id; ConfigError for neither."""
    kind, colon, source = which.partition(":")
    if which == "deterministic":
        return deterministic
    if kind == "nli" and colon and source:
        return NliCoherence(source, device)
    raise ConfigError(f"--coherence {which}: must be deterministic or nli:PATH, PATH a folder or hub id of an NLI model")
