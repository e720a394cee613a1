"""Does the reasoning support the answer? A deterministic check, or a natural-language-inference model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from portraitkit.errors import ConfigError, WeightsError
from preference_data.contract import Answer
from preference_data.verdict import NUMBERS
from reward_models.judge.reasoning import words_agree

Coherence = Callable[[Answer], float]


def deterministic(answer: Answer) -> float:
    """1 where the choice has not the lower average and no claim of the reasoning contradicts the scores, else 0."""
    return float(answer.coherent and words_agree(answer))


class NliCoherence:
    """Probability that the reasoning entails "ImageX is better", in [0, 1], as BeautyGRPO's DeBERTa-v3 gives it.

    0 where the choice has the lower average, whatever the words say. Hackable by reasoning that only repeats the conclusion: keep the
    rewards of the dimensions beside it.

    Args:
        source: a local folder or a hub id of a sequence classifier with an entailment label.
        device: as torch names it.

    Raises:
        WeightsError: it cannot be loaded.
        ConfigError: none of its labels, or more than one, is entailment.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_coherence(f"nli:{source}")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(source).to(device).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise WeightsError(f"--coherence nli:{source}: could not be loaded ({reason}); give a local folder or a hub id") from error
        self.entailment = _entailment(source, self.model.config.id2label)

    @torch.inference_mode()
    def __call__(self, answer: Answer) -> float:
        """See the class."""
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


def _entailment(source: str, id2label: Mapping[int, str]) -> int:
    labels = {int(place): str(label).casefold() for place, label in id2label.items()}
    found = [place for place, label in labels.items() if label.startswith("entail")]
    if len(found) != 1:
        raise ConfigError(f"--coherence nli:{source}: its labels are {', '.join(labels.values())}; one must be entailment")
    return found[0]


def check_coherence(which: str) -> None:
    """Refuse a local NLI model that is not there or is none, without reading its weights; a hub id is not looked up.

    Raises:
        WeightsError: no such folder, or no model in it.
        ConfigError: none of its labels, or more than one, is entailment.
    """
    source = which.partition(":")[2]
    folder = Path(source)
    if not source or (not folder.is_dir() and not folder.is_absolute() and not source.startswith(".") and source.count("/") < 2):
        return
    if not folder.is_dir():
        raise WeightsError(f"--coherence nli:{source}: no such folder; give a local folder or a hub id of an NLI model")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"--coherence nli:{source}: could not be loaded ({reason}); give a local folder or a hub id") from error
    _entailment(source, config.id2label or {})


def load_coherence(which: str, device: str = "cpu") -> Coherence:
    """`deterministic`, or `nli:` and a folder or hub id.

    Raises:
        ConfigError: neither.
    """
    kind, colon, source = which.partition(":")
    if which == "deterministic":
        return deterministic
    if kind == "nli" and colon and source:
        return NliCoherence(source, device)
    raise ConfigError(f"--coherence {which}: must be deterministic or nli:PATH, PATH a folder or hub id of an NLI model")
