"""What a run and a reward worker say to each other: a line of JSON and safetensors there, JSON back. Nothing loses a bit.

Pictures travel as the float32 numbers that they are: a PNG would round them to 8 bits, and rewards of rounded pictures are other rewards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from portraitkit.errors import DataError
from reward_models.photos import Photos

PROTOCOL = 1
SERVICE = "portraitkit-rewards"
TOKEN_ENV = "REWARD_WORKER_TOKEN"
LONGEST_HEAD = 2**16
FIELDS = tuple(field.name for field in fields(Photos))


def own_version() -> str:
    """Version of this package, which decides what its rewards are."""
    try:
        return version("portraitkit")
    except PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True)
class Asked:
    """One unit to be scored.

    Attributes:
        rewards: name -> fingerprint of the reward that is expected under it.
        candidates: RGB, as they are.
        photos: photo i belongs to candidate i.
        groups: equal numbers are candidates of one photo.
    """

    rewards: dict[str, str]
    candidates: Float[Tensor, "n 3 h w"]
    photos: Photos
    groups: Int[Tensor, " n"]


def pack(rewards: Mapping[str, str], candidates: Float[Tensor, "n 3 h w"], photos: Photos, groups: Int[Tensor, " n"]) -> bytes:
    """The body of a request. The photo of a group is sent once."""
    one = bool((groups == groups[0]).all()) and torch.equal(photos.source, photos.source[:1].expand_as(photos.source))
    index = torch.zeros(len(candidates), dtype=torch.int64) if one else torch.arange(len(candidates))
    kept = photos.select(index[:1]) if one else photos
    tensors = {f"photos.{name}": getattr(kept, name) for name in FIELDS} | {"candidates": candidates, "groups": groups, "index": index}
    head = json.dumps({"protocol": PROTOCOL, "rewards": dict(rewards)})  # clones: safetensors refuses tensors that share memory
    return head.encode() + b"\n" + save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def unpack(body: bytes) -> Asked:
    """Read the body of a request; nothing in it is run.

    Raises:
        DataError: it is none, of another protocol, or its tensors do not fit each other.
    """
    end = body.find(b"\n", 0, LONGEST_HEAD)
    try:
        head = json.loads(body[:end]) if end > 0 else None
        tensors = load(body[end + 1 :]) if isinstance(head, dict) else {}
    except (ValueError, RecursionError, SafetensorError) as error:
        raise DataError(f"not a request to score ({str(error)[:100]})") from error
    if not isinstance(head, dict) or head.get("protocol") != PROTOCOL:
        raise DataError(f"protocol {head.get('protocol') if isinstance(head, dict) else None!r}: this worker speaks {PROTOCOL}")
    rewards = head.get("rewards")
    if not isinstance(rewards, dict) or not rewards or not all(isinstance(text, str) for text in rewards.values()):
        raise DataError("rewards: must name at least one reward with its fingerprint")
    _check(tensors)
    photos = Photos(**{name: tensors[f"photos.{name}"] for name in FIELDS})
    return Asked(rewards, tensors["candidates"], photos.select(tensors["index"]), tensors["groups"])


def _check(tensors: Mapping[str, Tensor]) -> None:
    wanted = {"candidates", "groups", "index", *(f"photos.{name}" for name in FIELDS)}
    if set(tensors) != wanted:
        raise DataError(f"tensors {sorted(set(tensors) ^ wanted)} are missing or unknown")
    candidates, index, source = tensors["candidates"], tensors["index"], tensors["photos.source"]
    if candidates.ndim != 4 or source.ndim != 4 or min(candidates.shape) < 1 or len(source) < 1:
        raise DataError(f"candidates {tuple(candidates.shape)}, photos {tuple(source.shape)}: must be n x 3 x h x w")
    (count, _, height, width), photos = candidates.shape, len(source)
    picture, mask = (photos, 3, height, width), (photos, 1, height, width)
    shapes = {"candidates": (count, 3, height, width), "groups": (count,), "index": (count,)}
    shapes |= {"photos.source": picture, "photos.clean": picture, "photos.meshes": (photos, 468, 2), "photos.identity": (photos, 128)}
    shapes |= {f"photos.{name}": mask for name in ("skin", "features", "opacity")}
    for name, shape in shapes.items():
        tensor = tensors[name]
        kind = torch.int64 if name in ("groups", "index") else torch.float32
        if tuple(tensor.shape) != shape or tensor.dtype != kind:
            raise DataError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, must be {kind} {shape}")
    if int(index.min()) < 0 or int(index.max()) >= photos:
        raise DataError(f"index: between 0 and {photos - 1}")


def pack_answer(parts: Mapping[str, Tensor], counts: Mapping[str, Mapping[str, int]], seconds: float) -> bytes:
    """The body of an answer: a float32 survives as the decimal number that JSON writes; NaN is null."""
    values = {name: [None if value != value else value for value in part.double().tolist()] for name, part in parts.items()}
    return json.dumps({"values": values, "counts": dict(counts), "seconds": round(seconds, 4)}).encode()


def unpack_answer(body: bytes, names: Sequence[str], count: int) -> tuple[dict[str, Float[Tensor, " n"]], dict[str, dict[str, int]]]:
    """Values of every reward asked for, and what judges among them counted.

    Raises:
        DataError: it is no answer to that question.
    """
    try:
        answer: Any = json.loads(body)
        parts = {
            name: torch.tensor([float("nan") if value is None else float(value) for value in answer["values"][name]]) for name in names
        }
        counts = {str(name): {str(key): int(value) for key, value in one.items()} for name, one in answer["counts"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not the answer of a reward worker ({type(error).__name__})") from error
    if any(len(part) != count for part in parts.values()):
        raise DataError(f"not {count} values a reward")
    return parts, counts
