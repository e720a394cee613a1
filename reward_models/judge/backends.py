"""What a judge needs of a model, how its choice of digits is read, and three kinds of models.

In this process by transformers, or by vLLM for large models on GPUs, or behind an OpenAI-compatible endpoint.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from portraitkit.endpoint import Endpoint, Question, Reply, data_url
from portraitkit.errors import ConfigError, WeightsError, reason_of
from portraitkit.runs.checkpoint import check_weights
from portraitkit.vlm.generate import Choice, complete
from portraitkit.vlm.model import load_model, load_processor
from portraitkit.vlm.rows import Row
from preference_data.contract import BRIEF_SHAPE
from preference_data.schema import DIMENSIONS
from reward_models.judge.settings import source_of

Picture = Float[Tensor, "3 h w"]
DIGITS = "12345"
MOST_SURE = 12.0  # Largest log-odds that a choice of tokens is taken for; beyond it lies float32's rounding


@runtime_checkable
class Backend(Protocol):
    """A model behind a judge."""

    name: str

    def ask(self, prompt: str | Sequence[str], shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Reply]:
        """Greedy answers to the prompt, the same for all or one each, about each tuple of pictures (RGB in [0, 1]), which are shown before
        it, in order."""
        ...


@dataclass(frozen=True)
class Certainty:
    """How sure an answer is of its digits."""

    log_odds: float  # of the answer 1 against 2, within `MOST_SURE`
    scores: dict[str, tuple[float, float]]  # dimension -> expected scores of the pictures shown first and second, in [1, 5]


def read_certainty(text: str, choices: Sequence[Choice], names: Sequence[str] = DIMENSIONS) -> Certainty | None:
    """The probabilities behind the digits of an answer that one of the contracts can read, on the dimensions `names`, by its tokens that
    hold a digit, at least; None where these are not there, hold several digits each, or are not those of the text."""
    tokens = [token for token in choices for char in token[0] if char.isdecimal()]
    places = [place for place, char in enumerate(text) if char.isdecimal()]
    found: list[dict[str, float]] = []  # of each digit: digit -> log-probability of the same token with that digit in it, where it is told
    for place in _digits_of(text, len(names)):
        behind = len(places) - places.index(place)
        if behind > len(tokens):
            return None
        token, chances = tokens[-behind]
        if sum(char.isdecimal() for char in token) != 1 or text[place] not in token:
            return None
        found.append({other: chances[key] for other in DIGITS if (key := token.replace(text[place], other)) in chances})
    weights = [{int(digit): math.exp(log) for digit, log in chances.items()} for chances in found[:-1]]
    expected = [sum(value * weight for value, weight in some.items()) / sum(some.values()) for some in weights]
    scores = {name: (expected[2 * place], expected[2 * place + 1]) for place, name in enumerate(names)}
    first, second = (found[-1].get(digit, -math.inf) for digit in "12")
    odds = 0.0 if math.isinf(first) and math.isinf(second) else first - second
    return Certainty(max(-MOST_SURE, min(MOST_SURE, odds)), scores)


def _digits_of(text: str, count: int) -> list[int]:
    """Places in a readable answer of its two scores on each of `count` dimensions, and of the 1 or 2 that it chooses."""
    brief = BRIEF_SHAPE.fullmatch(text)
    if brief is not None:
        return [brief.start(group) for group in range(1, 2 * len(DIMENSIONS) + 2)]
    start = text.index("<answer>")
    pairs = list(re.finditer(r"Image1 = (\d), Image2 = (\d)", text[start:]))[:count]
    chosen = list(re.finditer(r"Image([12]) is better", text[start:]))[-1]
    return [start + pair.start(group) for pair in pairs for group in (1, 2)] + [start + chosen.start(1)]


# ---- three kinds of models

TOP = 20  # Likeliest tokens whose probabilities vLLM and OpenAI's interface tell at most
KEY_ENV = "JUDGE_API_KEY"
MOST_PICTURES = 3


class TransformersBackend:
    """A vision-language model and its processor.

    Questions with equally large pictures are answered together, `batch_size` at once. Within such a batch the vision tower reads each
    different picture once (`portraitkit.vlm.shared_prefix`): both orders of a comparison, and all candidates of a photo, share its passes.
    Answers depart from `form` in their choices alone; see `portraitkit.vlm.generate.complete`.
    """

    def __init__(self, model: Any, processor: Any, *, name: str, batch_size: int = 32, form: Sequence[str] = ()) -> None:
        self.model, self.processor, self.name, self.batch_size, self.form = model, processor, name, batch_size, form

    @classmethod
    def load(
        cls, source: str, *, device: str = "cpu", dtype: str | None = None, batch_size: int = 32, form: Sequence[str] = ()
    ) -> "TransformersBackend":
        """The embedded judge, a folder or a hub id (see `portraitkit.vlm.model`); a folder with a LoRA is loaded onto the base that it
        names. `dtype` is bfloat16 where the device is not the CPU, if not given. WeightsError: nothing can be loaded from there."""
        from peft import PeftConfig, PeftModel

        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        try:
            alone = Path(source, "adapter_config.json").is_file() and not Path(source, "config.json").is_file()
            base = str(PeftConfig.from_pretrained(source).base_model_name_or_path) if alone else None
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"judge {source}: its adapter_config.json cannot be read ({reason_of(error)}); save it again") from error
        try:
            model = load_model(base or source_of(source), dtype=dtype, device=device)
            processor = load_processor(base or source_of(source))
        except WeightsError as error:
            raise WeightsError(str(error).replace("--model", "judge", 1)) from error
        if base is not None:
            try:
                model = PeftModel.from_pretrained(model, source).merge_and_unload().eval()
            except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
                raise WeightsError(f"judge {source}: its LoRA does not fit {base} ({reason_of(error)}); check both") from error
            check_weights(f"judge {source}", model)
        return cls(model, processor, name=source, batch_size=batch_size, form=form)

    def ask(self, prompt: str | Sequence[str], shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Reply]:
        rows, prompts = [Row(pictures, None, "", {}) for pictures in shown], each(prompt, len(shown))
        said: list[Reply] = [Reply(None)] * len(rows)
        by_size: dict[Any, list[int]] = {}
        for place, pictures in enumerate(shown):
            by_size.setdefault(tuple(tuple(picture.shape) for picture in pictures), []).append(place)
        for places in by_size.values():
            answers = complete(
                self.model,
                self.processor,
                [prompts[place] for place in places],
                [rows[place] for place in places],
                max_tokens=max_tokens,
                batch_size=self.batch_size,
                watch=tuple(DIGITS),
                form=self.form,
            )
            for place, (answer,) in zip(places, answers, strict=True):
                tokens = {"tokens_in": answer.asked, "tokens_out": answer.tokens}
                said[place] = Reply(answer.text, **tokens, choices=answer.choices, cut=answer.cut)
        return said


def each(prompt: str | Sequence[str], count: int) -> list[str]:
    """One prompt a question."""
    return [prompt] * count if isinstance(prompt, str) else list(prompt)


class VllmBackend:
    """A model in vLLM's engine (`vllm.LLM`), which batches and caches pictures itself (`enable_prefix_caching`)."""

    def __init__(self, engine: Any, name: str, template: str | None) -> None:
        self.engine, self.name, self.template = engine, name, template

    @classmethod
    def load(cls, source: str) -> "VllmBackend":
        """Start the engine on a local folder or a hub id; WeightsError where vLLM is not installed, or the model cannot be loaded."""
        try:
            from vllm import LLM  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise WeightsError(f"judge vllm:{source}: vLLM is not installed; pip install vllm, or leave vllm: out") from error
        try:
            engine = LLM(model=source, limit_mm_per_prompt={"image": MOST_PICTURES}, enable_prefix_caching=True)
            return cls(engine, source, load_processor(source).chat_template)  # in which an answer begins with its own thought
        except (OSError, ValueError) as error:
            raise WeightsError(f"judge vllm:{source}: could not be loaded ({reason_of(error)}); check the id") from error

    def ask(self, prompt: str | Sequence[str], shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Reply]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        urls: dict[int, str] = {}
        chats = []
        for text, pictures in zip(each(prompt, len(shown)), shown, strict=True):
            for picture in pictures:
                if id(picture) not in urls:
                    urls[id(picture)] = data_url(picture)
            content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": urls[id(picture)]}} for picture in pictures]
            chats.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=TOP, repetition_penalty=1.0)
        said = []
        for output, *_ in (answer.outputs for answer in self.engine.chat(chats, sampling, chat_template=self.template, use_tqdm=False)):
            choices: list[Choice] = []
            for token, places in zip(output.token_ids, output.logprobs or [], strict=False):
                if token in places and (text := places[token].decoded_token) is not None:
                    told = {other.decoded_token: float(other.logprob) for other in places.values() if other.decoded_token is not None}
                    choices.append((text, told))
            said.append(Reply(output.text, choices=tuple(choices)))
        return said


class HttpBackend:
    """A model behind an endpoint, which asks greedily; with `top_logprobs` where the server tells them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.name = endpoint, endpoint.model

    @classmethod
    def connect(cls, url: str, *, timeout: float = 120.0, retries: int = 3, workers: int = 16) -> tuple["HttpBackend", dict[str, Any]]:
        """Connect to the first model of `URL/models`, the URL up to and including the version; the key, if one is needed, is in
        JUDGE_API_KEY. Returns the backend, and what the server says of the model: `serve-judge` tells its `judge` settings there.
        ConfigError: the URL is none.
        WeightsError: nothing answers there, or not with a list of models."""
        import httpx

        probe = Endpoint(url, "?", key_env=KEY_ENV, key_optional=True, timeout=min(timeout, 20.0))
        try:
            response = probe.client.get(f"{probe.url}/models")
            card = response.json()["data"][0]
            name = card["id"]
        except httpx.HTTPError as error:
            raise WeightsError(f"judge {url}: nothing answers there ({type(error).__name__}); start serve-judge, or check it") from error
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise WeightsError(f"judge {url}: {url}/models lists no model; check address and {KEY_ENV}") from error
        finally:
            probe.close()
        if not isinstance(name, str) or not isinstance(card, dict):
            raise ConfigError(f"judge {url}: the model there has no name")
        options = {"timeout": timeout, "retries": retries, "workers": workers, "top_logprobs": TOP}
        return cls(Endpoint(url, name, key_env=KEY_ENV, key_optional=True, **options)), card

    def ask(self, prompt: str | Sequence[str], shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Reply]:
        """See `Backend`; a request that failed for good is an answer without a text."""
        self.endpoint.max_tokens = max_tokens
        return self.endpoint.ask([Question(text, pictures) for text, pictures in zip(each(prompt, len(shown)), shown, strict=True)])

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()
