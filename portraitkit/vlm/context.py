"""How large a picture a model is shown, how many tokens it takes, and whether every row fits into the context.

Pictures are scaled to the limit of the processor before it, or another engine with a processor of its own such as vLLM, sees them: both
then find nothing left to scale, and all that read a row read the same pixels. A row that does not fit is refused by name, not cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from portraitkit.errors import DataError
from portraitkit.pictures.images import image_size
from portraitkit.vlm.model import model_path
from portraitkit.vlm.rows import Row, messages


@dataclass(frozen=True)
class Limit:
    """What a processor of Qwen's family does to a picture."""

    factor: int  # side in pixels of the square that becomes one token; sides become multiples of it
    least: int  # pixels of the smallest picture, `factor` squared or more
    most: int  # pixels of the largest

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of the given ones is shown with, by the processors' own rule.

        A picture that is too large is given a size that the rule leaves as it is. (`smart_resize` of qwen-vl-utils 0.0.14 is the same rule
        but for one thing: it gives narrow pictures a side of 0.)
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        found = smart_resize(height, width, self.factor, self.least, self.most)
        for _ in range(8):  # a processor whose least is near its most might never come to rest
            if height * width <= self.most or found == (height, width):
                break
            height, width = found
            found = smart_resize(height, width, self.factor, self.least, self.most)
        return found

    def tokens(self, height: int, width: int) -> int:
        """Tokens of such a picture."""
        high, wide = self.size(height, width)
        return high * wide // self.factor**2


def limit_of(processor: Any) -> Limit | None:
    """The limits of a processor; None of one that does not scale to a number of pixels."""
    images = processor.image_processor
    size = images.size
    if not (hasattr(images, "merge_size") and hasattr(images, "patch_size") and "longest_edge" in size and "shortest_edge" in size):
        return None
    return Limit(images.patch_size * images.merge_size, size["shortest_edge"], size["longest_edge"])


def capped(image: Image.Image, limit: Limit | None) -> Image.Image:
    """A picture, scaled down (bicubic) if it has more pixels than are shown; smaller ones are left to the processor."""
    if limit is None or image.width * image.height <= limit.most:
        return image
    height, width = limit.size(image.height, image.width)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def shown(row: Row, limit: Limit | None) -> list[Image.Image]:
    """The pictures of a row as a model is shown them."""
    return [capped(image, limit) for image in row.images()]


def picture_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of pictures of these heights and widths together."""
    limit = limit_of(processor)
    if limit is not None:
        return sum(limit.tokens(height, width) for height, width in sizes)
    blank = [Image.new("RGB", (width, height)) for height, width in sizes]
    token = processor.image_token
    ids = processor(images=[blank], text=[token * len(blank)], return_tensors="pt")["input_ids"][0]
    return int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())


@dataclass(frozen=True)
class Lengths:
    """Tokens of some rows."""

    pictures: tuple[int, int]  # fewest and most of a row's pictures together
    prompt: int  # most of a prompt with its pictures
    answer: int  # most that an answer may have
    context: int | None  # that the model, or the engine that generates, takes; None where it is not known

    def __str__(self) -> str:
        least, most = self.pictures
        pictures = f"{least}" if least == most else f"{least} to {most}"
        end = "unknown" if self.context is None else f"{self.context}"
        return f"tokens of a row: pictures {pictures}, longest prompt with them {self.prompt}, answer at most {self.answer}, context {end}"


def context_of(source: str) -> int | None:
    """Tokens that a model takes, by its configuration alone; None where that does not say."""
    from transformers import AutoConfig

    return getattr(
        AutoConfig.from_pretrained(model_path(source), trust_remote_code=False).get_text_config(), "max_position_embeddings", None
    )


def check_lengths(
    processor: Any, rows: Sequence[Row], prompt: str, *, max_tokens: int, context: int | None, targets: bool = False, limit: str = ""
) -> Lengths:
    """Count the tokens of every row (one or more) and refuse those that leave no room for an answer of `max_tokens`. Pictures in files are
    not decoded.

    `context` are the tokens that fit, None checks nothing; `limit` says in the message where it comes from. With `targets` the rows'
    targets are trained on, too, and must fit.

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
        sizes = tuple(image_size(one) if isinstance(one, Path) else (one.shape[-2], one.shape[-1]) for one in row.pictures)
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
