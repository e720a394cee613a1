"""Read once what rows of a batch share: each different picture by the vision tower, each different prompt by the language model.

A GRPO update compares answers to one prompt, pictures included, and so does sampled evaluation; a judge is shown the same photo with every
candidate, and every pair in both orders. TRL and transformers read prompt and pictures with every answer anew. Here they are read once:
of an update with groups of 8, one tower pass in 8 remains, forward and backward, and the answers stand behind their prompt side by side,
each attending to the prompt and itself (Prefix Grouper, Liu et al. 2025, arXiv 2506.05433). Values and gradients are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@contextmanager
def other_forward(model: Any, known: Sequence[str], make: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """While active, the first part of a known class has the forward that `make` makes of the part and its own; else nothing changes."""
    part: Any = next((module for module in model.modules() if type(module).__name__ in known), None)
    if part is None:
        yield
        return
    outer = vars(part).get("forward")  # of a context around this one
    part.forward = make(part, part.forward)
    try:
        yield
    finally:
        if outer is None:
            del part.forward
        else:
            part.forward = outer


TOWERS = ("Qwen2VisionTransformerPretrainedModel", "Qwen2_5_VisionTransformerPretrainedModel")
"""Towers that give one output per picture in order; others (Qwen3-VL adds features of deeper layers) read every picture anew."""


@contextmanager
def tower_once(model: Any) -> Iterator[None]:
    """While active, the model's vision tower reads each different picture of a call once; outputs and gradients stay what they were. A
    model, wrapped or not, whose tower is not in `TOWERS` works as without."""

    def reading_once(tower: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        def once(hidden_states: Float[Tensor, "patches values"], grid_thw: Int[Tensor, "pictures 3"], **options: Any) -> Any:
            patches = hidden_states.split(grid_thw.prod(-1).tolist())
            keep, place_of = _different(patches, grid_thw)
            if len(keep) == len(patches):
                return forward(hidden_states, grid_thw, **options)
            out = forward(torch.cat([patches[index] for index in keep]), grid_thw[keep], **options)
            merged = out.pooler_output.split((grid_thw[keep].prod(-1) // tower.spatial_merge_size**2).tolist())
            out.pooler_output = torch.cat([merged[place] for place in place_of])
            return out

        return once

    with other_forward(model, TOWERS, reading_once):
        yield


def _different(patches: Sequence[Float[Tensor, "_ values"]], grids: Int[Tensor, "pictures 3"]) -> tuple[list[int], list[int]]:
    """The first of each different picture, and for every picture the place of its equal among them.

    Sums tell nearly all different pictures apart with a single transfer from the device; those with equal ones are compared in full.
    """
    sums = torch.stack([values.sum(dtype=torch.float64) for values in patches]).tolist()
    places: dict[tuple[float, tuple[int, ...]], list[int]] = {}
    keep: list[int] = []
    place_of: list[int] = []
    for index, (total, grid) in enumerate(zip(sums, grids.tolist(), strict=True)):
        alike = places.setdefault((total, tuple(grid)), [])
        place = next((place for place in alike if torch.equal(patches[keep[place]], patches[index])), None)
        if place is None:
            place = len(keep)
            keep.append(index)
            alike.append(place)
        place_of.append(place)
    return keep, place_of


LANGUAGE_MODELS = ("Qwen2VLTextModel", "Qwen2_5_VLTextModel")
"""Language models that take a ready attention mask and nothing else of each token; others read every prompt anew."""
WORTH = 0.9  # Share of the work that may remain; above it, as with answers much longer than their prompt, a batch is read as it came


@contextmanager
def prompt_once(model: Any) -> Iterator[None]:
    """While active, the language model reads what rows of a call have in common at their beginning once.

    Of a training pass, outputs at masked tokens are not what they were, and no cache comes back. A model, wrapped or not, that is not in
    `LANGUAGE_MODELS`, or whose attention takes no ready mask (flash attention), works as without.
    """

    def reading_once(reader: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        def once(**given: Any) -> Any:
            if not _whole(given) or reader.config._attn_implementation not in ("sdpa", "eager") or reader.has_sliding_layers:
                return forward(**given)
            embeds, mask, places = given["inputs_embeds"], given["attention_mask"], given["position_ids"]
            shared, length = _shared(embeds, mask.bool(), places), embeds.shape[1]
            cache = given.get("past_key_values")
            if shared.length == length and len(shared.first) < len(embeds):
                out = forward(**given | _rows(given, shared.first))
                if cache is not None:
                    cache.batch_select_indices(shared.group)
                else:
                    out.past_key_values = None
                out.last_hidden_state = out.last_hidden_state[shared.group]
                return out
            if cache is not None or not shared.worth(length, embeds.shape[-1]):
                return forward(**given)
            packed = _packed(shared, embeds, mask.bool(), places)
            if reader.config._attn_implementation == "eager":  # adds its mask
                seen = packed["attention_mask"]
                packed["attention_mask"] = torch.where(seen, 0.0, torch.finfo(embeds.dtype).min).to(embeds.dtype)
            out = forward(**given | packed | {"use_cache": False})
            out.last_hidden_state = shared.unpacked(out.last_hidden_state, length)
            return out

        return once

    with other_forward(model, LANGUAGE_MODELS, reading_once):
        yield


def _whole(given: dict[str, Any]) -> bool:
    """Whether a call is about several rows from their first token on, with a mask that marks padding.

    An answer's later tokens are not: their prompts have been read.
    """
    embeds, mask, cache = given.get("inputs_embeds"), given.get("attention_mask"), given.get("past_key_values")
    places = getattr(given.get("position_ids"), "ndim", 0)
    if embeds is None or len(embeds) < 2 or places != 3 or not isinstance(mask, Tensor) or mask.ndim != 2:
        return False
    if given.get("output_hidden_states") or given.get("output_attentions"):
        return False  # of every layer, they would be packed
    return cache is None or (type(cache).__name__ == "DynamicCache" and not cache.get_seq_length())


@dataclass(frozen=True)
class Shared:
    """What the rows of a batch have in common."""

    length: int  # tokens at the beginning that are read once for each group
    first: Int[Tensor, " groups"]  # one row of each group, groups in the order of these rows
    group: Int[Tensor, " rows"]  # of each row
    slot: Int[Tensor, " rows"]  # of each row in its group, counted from 0

    @property
    def slots(self) -> int:
        """Rows of the largest group."""
        return int(self.slot.max()) + 1

    def worth(self, length: int, width: int) -> bool:
        """Whether reading beginnings once saves enough: a layer of this width costs a token about 24 width^2 + 4 width x its row's length.

        (Multiplications and additions of a transformer's layer, Kaplan et al. 2020, arXiv 2001.08361, table 1.)
        """
        line = self.length + self.slots * (length - self.length)
        packed = len(self.first) * line * (6 * width + line)
        return packed <= WORTH * len(self.group) * length * (6 * width + length)

    def unpacked(self, hidden: Float[Tensor, "groups tokens dim"], length: int) -> Float[Tensor, "rows length dim"]:
        """What each row would have given, from what the groups gave."""
        rest = hidden[:, self.length :].unflatten(1, (self.slots, length - self.length))
        return torch.cat([hidden[:, : self.length][self.group], rest[self.group, self.slot]], 1)


def _shared(embeds: Float[Tensor, "rows length dim"], mask: Bool[Tensor, "rows length"], places: Int[Tensor, "axes rows length"]) -> Shared:
    """The common beginnings with which the fewest tokens are left.

    Sums over the beginnings tell nearly all different ones apart; those that seem equal are compared in full.
    """
    rows, length = mask.shape
    marks = embeds.detach().sum(-1, dtype=torch.float64) + mask * 3.0 + places.sum(0) * 0.7
    sums = (marks * torch.arange(1, length + 1, device=marks.device)).cumsum(1)
    differs = sums.sort(0).values.diff(dim=0) != 0
    groups = 1 + differs.sum(0)
    at = torch.arange(1, length + 1, device=marks.device)
    best = int((groups * at + rows * (length - at)).argmin()) + 1  # as if all groups had equally many rows
    _, group, counts = torch.unique(sums[:, best - 1], return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    slot = torch.empty_like(group)
    slot[order] = torch.arange(rows, device=group.device) - starts[group[order]]
    first = order[starts]
    beginnings = (embeds.detach()[:, :best], mask[:, :best], places[:, :, :best].transpose(0, 1))
    if all(torch.equal(values, values[first[group]]) for values in beginnings):
        return Shared(best, first, group, slot)
    alone = torch.arange(rows, device=group.device)
    return Shared(length, alone, alone, torch.zeros_like(alone))


def _rows(given: dict[str, Any], rows: Int[Tensor, " n"]) -> dict[str, Tensor]:
    """Some rows of a call."""
    return {
        "inputs_embeds": given["inputs_embeds"][rows],
        "attention_mask": given["attention_mask"][rows],
        "position_ids": given["position_ids"][:, rows],
    }


def _packed(
    shared: Shared, embeds: Float[Tensor, "rows length dim"], mask: Bool[Tensor, "rows length"], places: Int[Tensor, "axes rows length"]
) -> dict[str, Tensor]:
    """The arguments of one call in which a group's answers stand side by side behind their beginning.

    A group with fewer answers than the largest is filled up with tokens that nothing attends to.
    """
    groups, slots, cut = len(shared.first), shared.slots, shared.length
    answer = mask.shape[1] - cut

    def lined_up(values: Tensor) -> Tensor:  # rows length ... -> groups (cut + slots answer) ...
        rest = values.new_zeros(groups, slots, answer, *values.shape[2:])
        rest = rest.index_put((shared.group, shared.slot), values[:, cut:])
        return torch.cat([values[shared.first, :cut], rest.flatten(1, 2)], 1)

    present = lined_up(mask)
    owner = torch.cat([present.new_zeros(cut, dtype=torch.long), torch.arange(1, slots + 1, device=mask.device).repeat_interleave(answer)])
    order = torch.arange(len(owner), device=mask.device)
    causal = order[:, None] >= order
    seen = causal & ((owner[:, None] == owner) | (owner == 0)) & present[:, None]
    seen = seen | torch.eye(len(owner), dtype=torch.bool, device=mask.device)  # a token that sees nothing would make NaN
    return {
        "inputs_embeds": lined_up(embeds),
        "attention_mask": seen[:, None],
        "position_ids": torch.stack([lined_up(axis) for axis in places]),
    }


@contextmanager
def read_once(model: Any) -> Iterator[None]:
    """While active, `tower_once` and `prompt_once`."""
    with tower_once(model), prompt_once(model):
        yield
