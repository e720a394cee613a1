"""Completions of a vision-language model, greedy or sampled, in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from portraitkit.vlm.rows import Row, messages


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: without special tokens.
        tokens: that were generated, the end token included.
        cut: the token limit ended it.
    """

    text: str
    tokens: int
    cut: bool


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
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[Completion]]:
    """Answer the prompt about each row's picture.

    Args:
        model: and `processor`, from `portraitkit.vlm.load`.
        processor: padding on the left.
        prompt: the user turn's text, the same for all rows or one a row.
        rows: whose pictures are shown, as many in each row.
        max_tokens: most tokens of an answer.
        temperature: 0 is greedy decoding.
        top_p: nucleus of the sampling.
        samples: answers a row; more than one needs a temperature above 0.
        batch_size: answers generated at once.
        seed: of the sampling; torch's global generator is left as it was.
        advance: called with the number of rows done, for a progress bar.

    Returns:
        `samples` completions for each row.
    """
    at_once = max(batch_size // samples, 1)
    prompts = [prompt] * len(rows) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(rows):
        raise ValueError(f"{len(prompts)} prompts for {len(rows)} rows")
    shown = len(rows[0].pictures) if rows else 1
    chats = {
        text: processor.apply_chat_template(messages(text, pictures=shown), tokenize=False, add_generation_prompt=True)
        for text in set(prompts)
    }
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    was_training = model.training
    model.eval()
    answers: list[list[Completion]] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            texts = [chats[text] for text in prompts[start : start + at_once]]
            inputs = processor(images=[row.images() for row in part], text=texts, padding=True, return_tensors="pt")
            inputs = inputs.to(model.device)
            sampling = (
                {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {"do_sample": False}
            )
            tokens = model.generate(**inputs, max_new_tokens=max_tokens, num_return_sequences=samples, **sampling)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            answered = processor.batch_decode(new, skip_special_tokens=True)
            done = [_finish(text, ids, ends) for text, ids in zip(answered, new.tolist(), strict=True)]
            answers += [done[i : i + samples] for i in range(0, len(done), samples)]
            advance(len(part))
    model.train(was_training)
    return answers


def _finish(text: str, tokens: list[int], ends: set[int]) -> Completion:
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), None)
    return Completion(text, length or len(tokens), length is None)
