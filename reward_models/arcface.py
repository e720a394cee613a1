"""Who it is by ArcFace (Deng et al., 2019), a second net beside dlib's: a reward, and a measure of evaluations where its weights are."""

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.faces.arcface import DEFAULT_FOLDER, FILES, ArcFaceIdentity, open_arcface
from reward_models.photos import Photos
from reward_models.reward import RewardFunction


def arcface_reward(source: str, device: str = "cpu") -> RewardFunction:
    """Cosine of ArcFace's embeddings of candidate and person, negative values as 0: in [0, 1], higher is better.

    The person is the clean portrait where it is known, else the photo. Two people have about 0 to .3, photos of one person .5 and more.

    Hacked by: copying the photo, which scores 1; adversarial texture that the net reads as the same face (texture falls).

    Args:
        source: folder of an insightface model pack or its ONNX file; empty is insightface's own place, `~/.insightface/models/buffalo_l`.
        device: of the net; see `open_arcface`.

    Raises:
        WeightsError: onnxruntime or the net is not there. Nothing is downloaded.
    """
    net = open_arcface(Path(source) if source else None, device)

    def reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        return (1 - _distance(net, candidates, photos)).clamp(0, 1)

    return reward


def has_arcface() -> bool:
    """Whether onnxruntime and a net in insightface's own place are there."""
    return find_spec("onnxruntime") is not None and any((DEFAULT_FOLDER.expanduser() / name).is_file() for name in FILES)


def check_arcface() -> None:
    """WeightsError where the net in insightface's own place cannot be opened, at a run's start and not at its first evaluation."""
    if has_arcface():
        open_arcface()


def arcface_change(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """1 - cosine of the embeddings of candidate and person, in [0, 2], by the net in insightface's own place.

    Raises:
        WeightsError: it is not there; see `has_arcface`.
    """
    return _distance(_own_net(str(candidates.device)), candidates, photos)


_own_net = cache(partial(open_arcface, None))  # by its device


def _distance(net: ArcFaceIdentity, candidates: Tensor, photos: Photos) -> Float[Tensor, " n"]:
    unknown = photos.clean.isnan().flatten(1).any(1).view(-1, 1, 1, 1)
    person = net.embedding(torch.where(unknown, photos.source, photos.clean), photos.meshes)
    return net.distance(net.embedding(candidates, photos.meshes.expand(len(candidates), -1, -1)), person)
