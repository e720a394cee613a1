"""How large a picture a model is shown, and how many tokens it takes.

Pictures are scaled to the processor's limit before the processor, or another engine with a processor of its own such as vLLM, sees
them: both then find nothing left to scale, and all that read a row read the same pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from portraitkit.pictures.images import image_size
from portraitkit.vlm.rows import Row


@dataclass(frozen=True)
class Limit:
    """What a processor of Qwen's family does to a picture.

    Attributes:
        factor: side in pixels of the square that becomes one token; sides become multiples of it.
        least: pixels of the smallest picture, `factor` squared or more.
        most: pixels of the largest.
    """

    factor: int
    least: int
    most: int

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


def sizes_of(row: Row) -> tuple[tuple[int, int], ...]:
    """Height and width of each picture of a row; files are not decoded."""
    return tuple(image_size(picture) if isinstance(picture, Path) else (picture.shape[-2], picture.shape[-1]) for picture in row.pictures)


def picture_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of pictures of these heights and widths together."""
    limit = limit_of(processor)
    if limit is not None:
        return sum(limit.tokens(height, width) for height, width in sizes)
    blank = [Image.new("RGB", (width, height)) for height, width in sizes]
    token = processor.image_token
    ids = processor(images=[blank], text=[token * len(blank)], return_tensors="pt")["input_ids"][0]
    return int((ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())
