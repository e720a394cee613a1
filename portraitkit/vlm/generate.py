"""Completions of a vision-language model, greedy or sampled, in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.parallel import divided, processes
from portraitkit.vlm.context import limit_of, shown
from portraitkit.vlm.rows import Row, messages
from portraitkit.vlm.shared_prefix import read_once

Choice = tuple[str, dict[str, float]]  # A token's text, and the log-probabilities of texts that could have stood in its place


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str  # without special tokens
    tokens: int  # that were generated, the end token included
    cut: bool  # the token limit ended it
    choices: tuple[Choice, ...] = ()  # each token that is one of the watched ones, in order, with the log-probabilities of all watched ones
    asked: int = 0  # tokens of the question, pictures included


@torch.inference_mode()
def complete(
    model: Any,
    processor: Any,
    prompt: str | Sequence[str],
    rows: Sequence[Row],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    watch: Sequence[str] = (),
    form: Sequence[str] = (),
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[Completion]]:
    """Answer a prompt, the user turn's text, the same for all rows or one a row, about each row's pictures, as many in each; returns
    `samples` completions for each row. Options are those of `Decoding`; temperature 0 is greedy, and more than one sample needs more;
    torch's global generator is left as it was.

    `watch` are texts of tokens whose probabilities are kept, such as digits; ignored where one of them is not a single token. `form` are
    whole answers of one form with each of the choices that it leaves, such as its digits: only tokens that one of them has at a place may
    stand there; ignored where they have different numbers of tokens. `advance` is called with the number of rows done, for a progress bar.
    """
    at_once = max(batch_size // samples, 1)
    prompts = [prompt] * len(rows) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(rows):
        raise ValueError(f"{len(prompts)} prompts for {len(rows)} rows")
    pictures, limit = len(rows[0].pictures) if rows else 1, limit_of(processor)
    chats = {
        text: processor.apply_chat_template(messages(text, pictures=pictures), tokenize=False, add_generation_prompt=True)
        for text in set(prompts)
    }
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    watched = _single_tokens(processor.tokenizer, watch)
    allowed = _allowed_tokens(processor.tokenizer, form, ends)
    was_training = model.training
    model.eval()
    answers: list[list[Completion]] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            texts = [chats[text] for text in prompts[start : start + at_once]]
            inputs = processor(images=[shown(row, limit) for row in part], text=texts, padding=True, return_tensors="pt")
            inputs = inputs.to(model.device)
            sampling: dict[str, Any] = (
                {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {"do_sample": False}
            )
            sampling["repetition_penalty"] = 1.0  # some hub models ship one: it would punish a score for having been given before
            recorder = _Recorder(watched)
            with read_once(model):
                tokens = model.generate(
                    **inputs,
                    max_new_tokens=max_tokens,
                    num_return_sequences=samples,
                    logits_processor=[
                        *([recorder] if watched else []),  # first: it keeps what the model would say
                        *([_Form(allowed, inputs["input_ids"].shape[1])] if allowed else []),
                    ],
                    **sampling,
                )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            answered = processor.batch_decode(new, skip_special_tokens=True)
            choices = recorder.choices(new) if watched else [()] * len(new)
            asked = inputs["attention_mask"].sum(-1).repeat_interleave(samples).tolist()
            done = [_finish(*one, ends) for one in zip(answered, new.tolist(), choices, asked, strict=True)]
            answers += [done[i : i + samples] for i in range(0, len(done), samples)]
            advance(len(part))
    model.train(was_training)
    return answers


@dataclass(frozen=True)
class Decoding:
    """How answers are generated, each process of a run answering its share of the rows, and all getting all."""

    processor: Any  # padding on the left
    prompt: str  # the user turn's text
    max_tokens: int  # most tokens of an answer
    temperature: float = 0.0  # of sampled answers
    top_p: float = 1.0  # of sampled answers
    samples: int = 1  # sampled answers a row
    batch_size: int = 64  # answers generated at once
    seed: int = 0  # of the sampling

    def complete(
        self, model: Any, rows: Sequence[Row], *, greedy: bool = False, advance: Callable[[int], object] = lambda count: None
    ) -> list[list[Completion]]:
        """`samples` answers to each row, or a greedy one; every process must be here, with the same rows.

        Greedy answers do not depend on the number of processes; sampled ones do, each process having a seed of its own.
        """
        count, mine = processes()
        left = len(rows)
        sampling = {} if greedy else {"temperature": self.temperature, "top_p": self.top_p, "samples": self.samples}
        how: dict[str, Any] = {"max_tokens": self.max_tokens, "batch_size": self.batch_size, "seed": self.seed + mine, **sampling}

        def tell(done: int) -> None:
            nonlocal left
            done = min(done * count, left)  # the others are as far, the last of them perhaps a row behind
            left -= done
            advance(done)

        return divided(rows, lambda some: complete(model, self.processor, self.prompt, some, advance=tell, **how))


def _finish(text: str, tokens: list[int], choices: tuple[Choice, ...], asked: int, ends: set[int]) -> Completion:
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), None)
    return Completion(text, length or len(tokens), length is None, choices, asked)


def _single_tokens(tokenizer: Any, texts: Sequence[str]) -> dict[str, int]:
    """Text -> token; empty where one of the texts is not exactly one token."""
    encoded = {text: tokenizer.encode(text, add_special_tokens=False) for text in texts}
    return {text: ids[0] for text, ids in encoded.items()} if all(len(ids) == 1 for ids in encoded.values()) else {}


def _allowed_tokens(tokenizer: Any, form: Sequence[str], ends: set[int]) -> list[list[int]]:
    """Tokens that may stand at each place of an answer, its end included; empty where the texts do not run in parallel."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in form]
    if len({len(tokens) for tokens in encoded}) != 1:
        return []
    return [*(sorted(set(place)) for place in zip(*encoded, strict=True)), sorted(ends)]


class _Form:
    """A logits processor that leaves a model only what a form allows: some tokens at each place of the answer, which begins at `start`."""

    def __init__(self, allowed: list[list[int]], start: int) -> None:
        self.allowed, self.start = allowed, start

    def __call__(self, input_ids: Int[Tensor, "rows length"], scores: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        tokens = self.allowed[min(input_ids.shape[1] - self.start, len(self.allowed) - 1)]
        left = torch.full_like(scores, float("-inf"))
        left[:, tokens] = scores[:, tokens]
        return left


class _Recorder:
    """A logits processor that changes nothing and keeps the log-probabilities of some tokens: of all of them, they would fill memories."""

    def __init__(self, watched: dict[str, int]) -> None:
        self.texts, self.ids = list(watched), list(watched.values())
        self.steps: list[Float[Tensor, "rows watched"]] = []

    def __call__(self, input_ids: Int[Tensor, "rows length"], scores: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        self.steps.append(scores.float().log_softmax(-1)[:, self.ids])
        return scores

    def choices(self, tokens: Int[Tensor, "rows new"]) -> list[tuple[Choice, ...]]:
        """The watched tokens of each row, in order."""
        kept = torch.stack(self.steps, 1).tolist()
        text_of = dict(zip(self.ids, self.texts, strict=True))
        return [
            tuple(
                (text_of[token], dict(zip(self.texts, step, strict=True)))
                for token, step in zip(row, steps, strict=False)
                if token in text_of
            )
            for row, steps in zip(tokens.tolist(), kept, strict=True)
        ]
