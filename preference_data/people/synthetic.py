"""Synthetic retouching cases: many people morphed from two real portraits, blemishes with a known mask, labels of mixed quality.

Everything here is synthetic and says so: the two faces are NASA's portrait of Eileen Collins (scikit-image) and the US Navy's
of Grace Hopper (matplotlib). People differ by morph position, face shape, skin tone, light and pose. The splits are disjoint in
morph position, so that a held-out face is a person who was never trained on:

    train       morph position in [0, .34] or [.66, 1]
    validation  morph position in [.37, .39] or [.61, .63]: what settings and checkpoints are chosen on
    held_out    morph position in [.42, .58]: looked at only to report
"""

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from portraitkit.faces import align, detect, mesh, portraits, regions
from preference_data.people import warps

STAGE = 192
SEEDS = {"train": 0, "validation": 10_000_000, "held_out": 20_000_000}  # The first seed of each split in product runs
SPLITS = {"train": ((0.0, 0.34), (0.66, 1.0)), "validation": ((0.37, 0.39), (0.61, 0.63)), "held_out": ((0.42, 0.58),)}
# Reflectance of the spot's core relative to the skin around it (R, G, B): inflamed, brown, scab, pale scar, diffuse redness.
TINTS = torch.tensor([[0.96, 0.66, 0.68], [0.66, 0.55, 0.50], [0.60, 0.42, 0.40], [1.14, 1.16, 1.16], [0.99, 0.83, 0.85]])
TINT_SHARES = torch.tensor([0.38, 0.28, 0.14, 0.08, 0.12])
DIFFUSE = 4


@dataclass(frozen=True)
class Person:
    """One synthetic person before any blemish."""

    clean: Float[Tensor, "3 h w"]  # the portrait, RGB in [0, 1]
    mesh: Float[Tensor, "468 2"]  # 468 landmarks (x, y) in pixels
    skin: Float[Tensor, "1 h w"]  # soft skin mask in [0, 1]
    morph: float  # position between the two real faces, 0 (Collins) to 1 (Hopper)


@dataclass(frozen=True)
class Case:
    """A photo to retouch, with the truth about it."""

    source: Float[Tensor, "3 h w"]  # the blemished portrait, RGB in [0, 1]
    clean: Float[Tensor, "3 h w"]  # the same portrait without blemishes: the honest retouch
    opacity: Float[Tensor, "1 h w"]  # opacity of the painted blemishes in [0, 1]
    skin: Float[Tensor, "1 h w"]  # soft skin mask in [0, 1]
    mesh: Float[Tensor, "468 2"]  # 468 landmarks (x, y) in pixels
    morph: float  # who it is, see `Person`


@cache
def _mirror() -> list[int]:
    """For each landmark the one on the other side of the face, found by matching the mirrored mean mesh with itself."""
    points = stage()[1].mean(0)
    mirrored = points.clone()
    mirrored[:, 0] = 2 * points[[33, 263], 0].mean() - points[:, 0]
    return linear_sum_assignment(torch.cdist(points, mirrored).numpy())[1].tolist()


@cache
def stage() -> tuple[Float[Tensor, "2 3 s s"], Float[Tensor, "2 468 2"]]:
    """The two real portraits, aligned on a common square stage, with their landmarks."""
    images, meshes = [], []
    for name in ("astronaut", "grace_hopper"):
        photo = portraits.bundled_portraits()[name]
        points = mesh.face_mesh(photo, detect.detect_faces(photo)[0])
        aligned = align.align_face(photo, points, STAGE)
        images.append(aligned.pixels)
        meshes.append(points[:, :2] @ aligned.matrix[:, :2].T + aligned.matrix[:, 2])
    return torch.stack(images), torch.stack(meshes)


def draw_morph(split: str, generator: torch.Generator) -> float:
    """Where between the two portraits a person of the split stands, in [0, 1]: what `make_person` draws first."""
    ranges = SPLITS[split]
    return draw_uniform(generator, *ranges[int(torch.randint(len(ranges), (1,), generator=generator))])


Faces = tuple[Float[Tensor, "2 3 s s"], Float[Tensor, "2 468 2"]]


def make_person(split: str, generator: torch.Generator, *, size: int = 128, faces: Faces | None = None) -> Person:
    """Draw one person of `split` (a key of `SPLITS`): morph, shape, pose, skin tone, light, pores; from `faces`, the stage if not given."""
    morph = draw_morph(split, generator)
    images, meshes = faces or stage()
    landmarks = warps.random_shape(torch.lerp(meshes[0], meshes[1], morph), STAGE, generator)
    grid = warps.pixel_grid(STAGE, STAGE)
    warped = [
        warps.sample_at(image, grid + warps.landmark_field(landmarks, own - landmarks, STAGE))
        for image, own in zip(images, meshes, strict=True)
    ]
    masks = regions.region_masks(landmarks, STAGE, STAGE, only=("skin", "face_oval"))
    share_of_skin = masks["skin"] / masks["skin"].sum()
    means = torch.stack([(image * share_of_skin).sum((1, 2)) for image in warped])
    target = torch.lerp(means[0], means[1], morph)
    matched = [(image * (target / mean).view(3, 1, 1)).clamp(0, 1) for image, mean in zip(warped, means, strict=True)]
    inside = gaussian_blur(masks["face_oval"], kernel_size=[13, 13], sigma=[3.0, 3.0])
    share = torch.where(torch.tensor(morph > 0.5), 1 - inside * (1 - morph), inside * morph)
    portrait = torch.lerp(matched[0], matched[1], share)

    return photograph(portrait, landmarks, masks["skin"], generator, size=size, morph=morph)


def photograph(
    portrait: Float[Tensor, "3 s s"],
    landmarks: Float[Tensor, "468 2"],
    skin: Float[Tensor, "1 s s"],
    generator: torch.Generator,
    *,
    size: int,
    morph: float = float("nan"),
    changed: bool = True,
) -> Person:
    """Photograph a face of the stage (RGB and soft mask in [0, 1]) at `size` pixels a side: from another distance and angle, mirrored or
    not, in another light; with `changed` the skin gets another tone and pores, too. For `morph` see `Person`.
    """
    uniform = partial(draw_uniform, generator)
    side = STAGE * uniform(0.88, 1.04)
    turn = torch.tensor(uniform(-0.14, 0.14))
    rotation = torch.stack([torch.cos(turn), -torch.sin(turn), torch.sin(turn), torch.cos(turn)]).view(2, 2)
    centre = torch.tensor([STAGE / 2 + uniform(-6, 6), STAGE / 2 + uniform(-6, 6)])
    mirrored = uniform(0, 1) < 0.5
    flip = torch.tensor([-1.0 if mirrored else 1.0, 1.0])
    linear = rotation * flip * (side / size)
    view = (warps.pixel_grid(size, size) - size / 2) @ linear.T + centre
    portrait = warps.sample_at(gaussian_blur(portrait, kernel_size=[5, 5], sigma=[0.35 * side / size, 0.35 * side / size]), view)
    points = (landmarks - centre) @ torch.linalg.inv(linear).T + size / 2
    if mirrored:
        points = points[_mirror()]
    skin = warps.sample_at(skin, view)
    if changed:
        portrait = warps.random_tone(portrait, skin, generator)
        pores = torch.randn(1, size, size, generator=generator)
        pores = pores - gaussian_blur(pores, kernel_size=[7, 7], sigma=[1.2, 1.2])
        portrait = (portrait * (1 + uniform(0.005, 0.035) * pores * skin)).clamp(0, 1)
    return Person(portrait, points, skin, morph)


def make_case(split: str, seed: int, *, size: int = 128, count: tuple[int, int] = (5, 14)) -> Case:
    """One blemished photo of one person; equal seeds give equal cases."""
    generator = torch.Generator().manual_seed(seed)
    return blemished(make_person(split, generator, size=size), generator, count)


def blemished(person: Person, generator: torch.Generator, count: tuple[int, int]) -> Case:
    """The person with `count[0]` to `count[1]` spots painted on."""
    source, opacity = paint_blemishes(person.clean, person.skin, generator, count=count)
    return Case(source, person.clean, opacity, person.skin, person.mesh, person.morph)


def paint_blemishes(
    clean: Float[Tensor, "3 h w"], skin: Float[Tensor, "1 h w"], generator: torch.Generator, *, count: tuple[int, int] = (5, 14)
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "1 h w"]]:
    """Paint `count[0]` to `count[1]` irregular spots on one portrait, RGB in [0, 1], centred where the skin mask exceeds .95.

    Each multiplies the skin under it by a tint, so that pores and shading stay visible through it, as they do on skin.

    Returns:
        The blemished portrait, RGB in [0, 1], and the opacity of the spots in [0, 1] (0 where nothing was painted).
    """
    height, width = clean.shape[-2:]
    unit = height / 128
    candidates = (skin[0] > 0.95).nonzero()
    if len(candidates) == 0:
        return clean.clone(), torch.zeros_like(skin)
    number = int(torch.randint(count[0], count[1] + 1, (1,), generator=generator))
    out, opacity = clean.clone(), torch.zeros_like(skin)
    grid, uniform = warps.pixel_grid(height, width), partial(draw_uniform, generator)
    for _ in range(number):
        y, x = candidates[torch.randint(len(candidates), (1,), generator=generator)[0]].tolist()
        kind = int(torch.multinomial(TINT_SHARES, 1, generator=generator))
        radius = math.exp(uniform(math.log(1.5), math.log(4.0))) * unit
        if kind == DIFFUSE:
            radius = uniform(4.0, 7.0) * unit
        offset = grid - torch.tensor([x + uniform(0, 1), y + uniform(0, 1)])
        angle = torch.atan2(offset[..., 1], offset[..., 0])
        stretch, turn = uniform(0.75, 1.35), uniform(0, math.pi)
        distance = offset.norm(dim=-1) / radius * torch.exp(math.log(stretch) * torch.cos(2 * (angle - turn)))
        distance = distance * (1 + uniform(0, 0.12) * torch.sin(3 * angle + uniform(0, 6.3)))
        softness = uniform(0.35, 0.6) if kind == DIFFUSE else uniform(0.12, 0.28)
        spot = torch.sigmoid((1 - distance) / softness) * uniform(0.65, 1.0) * skin[0]
        out = out * (1 - spot * (1 - TINTS[kind].view(3, 1, 1)))
        opacity = torch.maximum(opacity, spot[None])
    opacity = torch.where(opacity > 0.05, opacity, 0.0)
    return torch.where(opacity > 0, out, clean).clamp(0.0, 1.0), opacity


def draw_uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """A number drawn evenly from [low, high)."""
    return low + (high - low) * float(torch.rand(1, generator=generator))
