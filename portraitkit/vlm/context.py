"""Rows against the model's context, before anything is trained: what does not fit is refused by name, not cut in silence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from portraitkit.errors import DataError
from portraitkit.vlm.load import model_path
from portraitkit.vlm.pictures import picture_tokens, sizes_of
from portraitkit.vlm.rows import Row, messages


@dataclass(frozen=True)
class Lengths:
    """Tokens of some rows.

    Attributes:
        pictures: fewest and most of a row's pictures together.
        prompt: most of a prompt with its pictures.
        answer: most that an answer may have.
        context: that the model, or the engine that generates, takes; None where it is not known.
    """

    pictures: tuple[int, int]
    prompt: int
    answer: int
    context: int | None

    def __str__(self) -> str:
        least, most = self.pictures
        pictures = f"{least}" if least == most else f"{least} to {most}"
        end = "unknown" if self.context is None else f"{self.context}"
        return f"tokens of a row: pictures {pictures}, longest prompt with them {self.prompt}, answer at most {self.answer}, context {end}"


def context_of(source: str) -> int | None:
    """Tokens that a model takes, by its configuration alone; None where that does not say.

    Args:
        source: see `model_path`.
    """
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(model_path(source)).get_text_config(), "max_position_embeddings", None)


def check_lengths(
    processor: Any, rows: Sequence[Row], prompt: str, *, max_tokens: int, context: int | None, targets: bool = False, limit: str = ""
) -> Lengths:
    """Count the tokens of every row and refuse those that leave no room for an answer. Pictures in files are not decoded.

    Args:
        processor: of the model.
        rows: to be shown; one or more.
        prompt: the user turn's text.
        max_tokens: most tokens of an answer.
        context: tokens that fit; None checks nothing.
        targets: the rows' targets are trained on, too, and must fit.
        limit: where the context comes from, for the message.

    Raises:
        DataError: a row does not fit; it is named.
        ImageError: a picture cannot be read.
    """
    tokenizer = processor.tokenizer
    text = processor.apply_chat_template(messages(prompt, pictures=len(rows[0].pictures)), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    words = len(ids) - ids.count(tokenizer.convert_tokens_to_ids(processor.image_token))
    known: dict[tuple[tuple[int, int], ...], int] = {}
    counts, most = [], max_tokens
    for place, row in enumerate(rows):
        sizes = sizes_of(row)
        pictures = known[sizes] if sizes in known else known.setdefault(sizes, picture_tokens(processor, sizes))
        answer = max(max_tokens, len(tokenizer(row.target, add_special_tokens=False)["input_ids"]) + 1) if targets else max_tokens
        if context is not None and words + pictures + answer > context:
            raise DataError(
                f"{row.name or f'row {place + 1}'}: prompt {words} + pictures {pictures} + answer {answer} tokens: must fit into "
                f"{limit or 'the context'} of {context}; lower --max-pixels or --max-tokens, or leave the row out"
            )
        counts.append(pictures)
        most = max(most, answer)
    return Lengths((min(counts), max(counts)), words + max(counts), most, context)
