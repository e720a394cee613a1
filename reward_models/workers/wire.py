"""What a run and a reward worker say to each other: a line of JSON and safetensors there, JSON back. Nothing loses a bit.

Pictures travel as the float32 numbers that they are: a PNG would round them to 8 bits, and rewards of rounded pictures are other rewards.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from portraitkit.errors import DataError
from reward_models.judge.reward import split_argument
from reward_models.photos import Photos

PROTOCOL = 2
SERVICE = "portraitkit-rewards"
TOKEN_ENV = "REWARD_WORKER_TOKEN"
LONGEST_HEAD = 2**16
FIELDS = tuple(field.name for field in fields(Photos))
MASKS = ("skin", "features", "opacity")


def own_version() -> str:
    """Version of this package, which decides what its rewards are."""
    try:
        return version("portraitkit")
    except PackageNotFoundError:
        return "not installed"


def fingerprint(name: str) -> str:
    """What a reward is made of, as text: the package's version, and the sha256 of the files in the folder that the name gives.

    A hub id, a model behind a URL and open_clip's MODEL/TAG stand for themselves: what is behind them is not looked at.
    """
    kind, _, argument = name.partition(":")
    text = f"portraitkit {own_version()}"
    if kind == "iqa":
        return f"{text}, pyiqa {version('pyiqa')}"
    if kind == "judge":
        argument = split_argument(argument)[0]
    folder = Path(argument.removeprefix("vllm:"))
    if not argument or not folder.is_dir():
        return text
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{text}, sha256 {total.hexdigest()[:16]}"


@dataclass(frozen=True)
class Asked:
    """One unit to be scored."""

    rewards: dict[str, str]  # name -> fingerprint of the reward that is expected under it
    candidates: Float[Tensor, "n 3 h w"]  # RGB, as they are
    photos: Photos  # one, whose group the candidates are; or one a candidate, each a group of its own


def pack(rewards: Mapping[str, str], candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> bytes:
    """The body of a request; the arguments are the fields of `Asked`."""
    tensors = {f"photos.{name}": getattr(photos, name) for name in FIELDS} | {"candidates": candidates}
    head = json.dumps({"protocol": PROTOCOL, "rewards": dict(rewards)})  # clones: safetensors refuses tensors that share memory
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}  # to be sent
    return head.encode() + b"\n" + save(whole)


def unpack(body: bytes) -> Asked:
    """Read the body of a request; nothing in it is run. DataError for none, another protocol, or tensors that do not fit each other."""
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
    wanted = {"candidates", *(f"photos.{name}" for name in FIELDS)}
    if set(tensors) != wanted:
        raise DataError(f"tensors {sorted(set(tensors) ^ wanted)} are missing or unknown")
    candidates, source = tensors["candidates"], tensors["photos.source"]
    if candidates.ndim != 4 or source.ndim != 4 or min(candidates.shape) < 1 or len(source) < 1:
        raise DataError(f"candidates {tuple(candidates.shape)}, photos {tuple(source.shape)}: must be n x 3 x h x w")
    (count, _, height, width), photos = candidates.shape, len(source)
    picture, mask = (photos, 3, height, width), (photos, 1, height, width)
    shapes = {"candidates": (count, 3, height, width), "photos.meshes": (photos, 468, 2), "photos.identity": (photos, 128)}
    shapes |= {f"photos.{name}": picture for name in ("source", "clean")} | {f"photos.{name}": mask for name in MASKS}
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape or tensors[name].dtype != torch.float32:
            raise DataError(f"{name}: {tensors[name].dtype} {tuple(tensors[name].shape)}, must be {torch.float32} {shape}")
    if photos not in (1, count):
        raise DataError(f"{photos} photos for {count} candidates: must be 1, or one a candidate")
    return Asked(rewards, tensors["candidates"], Photos(**{name: tensors[f"photos.{name}"] for name in FIELDS}))


def pack_answer(parts: Mapping[str, Tensor], counts: Mapping[str, Mapping[str, int]], seconds: float) -> bytes:
    """The body of an answer: a float32 survives as the decimal number that JSON writes; NaN is null."""
    values = {name: [None if value != value else value for value in part.double().tolist()] for name, part in parts.items()}
    return json.dumps({"values": values, "counts": dict(counts), "seconds": round(seconds, 4)}).encode()


def unpack_answer(body: bytes, names: Sequence[str], count: int) -> tuple[dict[str, Float[Tensor, " n"]], dict[str, dict[str, int]]]:
    """Values of every reward asked for, and what judges among them counted; DataError for no answer to that question."""
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
