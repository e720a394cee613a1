"""Pairs against a judge's context, before it is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from portraitkit.pictures.images import image_size
from portraitkit.vlm.context import Lengths, check_lengths, context_of
from portraitkit.vlm.rows import Row
from reward_models.judge.pairs import JudgedPair, Stored, View
from reward_models.training.config import RewardModelConfig


def check_pair_lengths(
    config: RewardModelConfig, processor: Any, view: View, pairs: Mapping[str, Sequence[JudgedPair]], longest: int | None
) -> Lengths:
    """Refuse pairs that leave no room for an answer; both orders are equally long, so that one of them is counted.

    Pictures that are shown as they were taken are all counted, from their files' heads. Views that are drawn are counted once for each
    size of the photo.

    Args:
        config: of the training.
        processor: of the model.
        view: how pairs are shown.
        pairs: of all splits; one or more.
        longest: tokens that the engine takes which generates, or None.

    Raises:
        DataError: a pair does not fit; it is named.
    """
    context, limit = context_of(config.source), "the model's context"
    if longest is not None and (context is None or longest < context):
        context, limit = longest, "vLLM's longest sequence"
    rows: dict[object, Row] = {}
    for pair in (pair for some in pairs.values() for pair in some):
        whole = view.shown == "as-taken" and isinstance(pair.photo, Path)
        key = pair.id if whole else tuple(_size(one) for one in (pair.photo, pair.a, pair.b))
        if key not in rows:
            rows[key] = view.rows(pair)[0]
    settings: dict[str, Any] = {"max_tokens": config.max_tokens, "context": context, "limit": limit, "targets": "sft" in config.stages}
    return check_lengths(processor, list(rows.values()), view.prompt, **settings)


def _size(picture: Stored) -> tuple[int, int]:
    return image_size(picture) if isinstance(picture, Path) else (picture.shape[0], picture.shape[1])
