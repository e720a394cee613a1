"""A judge's model in this process, by vLLM: for large models on GPUs. vLLM is not a dependency and is imported when it is asked for."""

from collections.abc import Sequence
from typing import Any

from portraitkit.endpoint import data_url
from portraitkit.errors import WeightsError
from reward_models.judge.backend import Choice, Picture, Said

TOP = 20
"""Likeliest tokens whose probabilities vLLM tells, its default limit."""
MOST_PICTURES = 3


class VllmBackend:
    """A model in vLLM's engine, which batches and caches pictures itself (`enable_prefix_caching`).

    Args:
        engine: a `vllm.LLM`.
        name: of the model.
    """

    def __init__(self, engine: Any, name: str) -> None:
        self.engine, self.name = engine, name

    @classmethod
    def load(cls, source: str) -> "VllmBackend":
        """Start the engine on a local folder or a hub id.

        Raises:
            WeightsError: vLLM is not installed, or the model cannot be loaded.
        """
        try:
            from vllm import LLM  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise WeightsError(f"judge vllm:{source}: vLLM is not installed; pip install vllm, or leave vllm: out") from error
        try:
            return cls(LLM(model=source, limit_mm_per_prompt={"image": MOST_PICTURES}, enable_prefix_caching=True), source)
        except (OSError, ValueError) as error:
            raise WeightsError(f"judge vllm:{source}: could not be loaded ({str(error).splitlines()[0]}); check the id") from error

    def ask(self, prompt: str, shown: Sequence[tuple[Picture, ...]], max_tokens: int) -> list[Said]:
        """See `judge_backend.Backend`."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        urls: dict[int, str] = {}
        chats = []
        for pictures in shown:
            for picture in pictures:
                if id(picture) not in urls:
                    urls[id(picture)] = data_url(picture)
            content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": urls[id(picture)]}} for picture in pictures]
            chats.append([{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}])
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=TOP, repetition_penalty=1.0)
        outputs = self.engine.chat(chats, sampling, use_tqdm=False)
        return [_said(output.outputs[0]) for output in outputs]


def _said(output: Any) -> Said:
    choices: list[Choice] = []
    for token, places in zip(output.token_ids, output.logprobs or [], strict=False):
        told = {other.decoded_token: float(other.logprob) for other in places.values() if other.decoded_token is not None}
        text = places[token].decoded_token if token in places else None
        if text is not None:
            choices.append((text, told))
    return Said(output.text, "", tuple(choices))
