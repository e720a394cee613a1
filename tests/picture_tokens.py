"""What a processor makes of rows, token by token: what the product counts without decoding a picture is held against it."""

from collections.abc import Sequence
from typing import Any

from portraitkit.vlm.context import limit_of, shown
from portraitkit.vlm.rows import Row, messages


def count_tokens(processor: Any, prompt: str, rows: Sequence[Row]) -> tuple[list[int], int]:
    """Tokens of each row's pictures, and of the longest prompt with its pictures, as the processor makes them."""
    turns = messages(prompt, pictures=len(rows[0].pictures))
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    pictures, longest, limit = [], 0, limit_of(processor)
    for row in rows:
        ids = processor(images=shown(row, limit), text=[text], return_tensors="pt")["input_ids"][0]
        pictures.append(int((ids == image_token).sum()))
        longest = max(longest, len(ids))
    return pictures, longest
