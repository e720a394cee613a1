"""How a photo and two retouches of it are shown to a judge.

A large model is shown the three pictures as they are. A tiny one cannot compare pictures that it reads one after the other, so the
embedded judge is shown two: each candidate above its difference from the photo, amplified around grey.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.pictures.images import resize

Picture = Float[Tensor, "3 h w"]
Show = Callable[[Picture, Picture, Picture], list[Tensor]]
SIDE = 128
CROP = 96
GAIN = 2.5


def as_taken(photo: Picture, first: Picture, second: Picture) -> list[Tensor]:
    """Photo, Image1, Image2."""
    return [photo, first, second]


def beside_difference(photo: Picture, first: Picture, second: Picture) -> list[Tensor]:
    """Image1 and Image2, each as `candidate_view` shows it."""
    return [candidate_view(photo, candidate) for candidate in (first, second)]


def candidate_view(photo: Picture, candidate: Picture) -> Float[Tensor, "3 192 96"]:
    """The candidate's middle above `GAIN` times its difference from the photo."""
    photo, candidate = _middle(photo), _middle(candidate)
    return torch.cat([candidate, ((candidate - photo) * GAIN + 0.5).clamp(0, 1)], 1)


def _middle(picture: Tensor) -> Tensor:
    square = picture if picture.shape[-2:] == (SIDE, SIDE) else resize(picture, (SIDE, SIDE))
    edge = (SIDE - CROP) // 2
    return square[:, edge : edge + CROP, edge : edge + CROP]


SHOWN: dict[str, Show] = {"as-taken": as_taken, "beside-difference": beside_difference}  # By the name that a judge's configuration gives
