"""One pass of the retoucher, taken apart so that it can be put together with any strengths: `split_edit`, then `combine`.

Everything happens in CIELAB on an aligned crop of the face. A spot is filled from the skin around it; tone is all that is broader than a
spot; texture is what lies between a spot and a pore. Finer detail than `PORE` belongs to none of them and stays as the photo has it. The
retoucher's change (its answer less the photo) is sorted into these three, and each is completed by what the retoucher has left to do: an
editor that does all of it adds all, one that does little (as the embedded one) adds little. Lengths are in pixels of a crop of 128.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies.retoucher.retouch.options import Controls
from policies.retoucher.retouch.spots import CONTRAST, Spot, find_spots, open_skin
from portraitkit.pictures.images import lab_to_srgb, srgb_to_lab
from reward_models.filters import blur, blur_inside

PORE, SPOT, BLOTCH, FACE = 0.5, 3.0, 4.0, 14.0
"""Gaussians that part pores from texture, texture from spots' surroundings and tone, and blotches from the colour of a whole cheek."""
SOFTENED = 3.0
"""Unevenness in L* up to which texture is softened; a wrinkle or a fold, which has more, keeps its own."""
SKIN = 0.8
"""Share of open skin from which on a pixel is looked at for spots."""


@dataclass(frozen=True, eq=False)
class FaceParts:
    """What may be done to a face, in the pixels of its aligned crop: changes in CIELAB, each at its full strength."""

    crop: Float[Tensor, "3 size size"]  # the face as it is, RGB in [0, 1]
    fill: Float[Tensor, "3 size size"]  # levels each spot with the skin around it; 0 off the spots
    owner: Int[Tensor, "size size"]  # the spot that a pixel belongs to by its number, -1 where there is none
    own: Float[Tensor, "3 size size"]  # the retoucher's change of spots that it alone saw
    tone: Float[Tensor, "3 size size"]  # evens blotches
    texture: Float[Tensor, "3 size size"]  # softens unevenness
    spots: tuple[Spot, ...]  # in pixels of the crop


def split_edit(crop: Float[Tensor, "3 size size"], retouched: Float[Tensor, "3 size size"], mesh: Float[Tensor, "468 dim"]) -> FaceParts:
    """Take the change from a crop to its retouch apart.

    Args:
        crop: aligned face, RGB in [0, 1].
        retouched: the same after the retoucher.
        mesh: in pixels of the crop.

    Returns:
        The parts, each of them 0 where no open skin is: on eyes, lids, brows, lips, nostrils, hair, stubble, glasses and off the face.
    """
    lab, unit = srgb_to_lab(crop)[None], crop.shape[-1] / 128
    change = srgb_to_lab(retouched)[None] - lab
    skin = open_skin(lab[0], mesh)[None]
    spots, owner, opacity = find_spots(lab[0], skin[0] > SKIN)
    even = skin * (1 - opacity)
    fill = opacity * skin * (blur_inside(lab, even, SPOT * unit) - blur(lab, PORE * unit)) * (blur(even, SPOT * unit) > 0.02)

    broad = blur_inside(change, skin, BLOTCH * unit)
    left = lab + broad
    blotches = blur_inside(left, even, FACE * unit) - blur_inside(left, even, BLOTCH * unit)
    tone = skin * (broad + blotches * _channels(lab, 0, 1, 1))  # light and shade are the shape of the face, and stay
    # The face as a whole keeps its colour: it is neither whitened nor parted from the neck.
    tone = tone - skin * (tone.sum((2, 3), keepdim=True) / skin.sum().clamp_min(1e-6))

    fine = change - broad
    seen = ((fine[:, :2].abs().sum(1, keepdim=True) - CONTRAST) / CONTRAST).clamp(0, 1)
    own = even * blur(fine * seen, PORE * unit)
    texture = blur(fine * (1 - seen), PORE * unit)
    rough = blur(lab, PORE * unit) + texture
    rough = (rough - blur_inside(rough, even, SPOT * unit)) * _channels(lab, 1, 0, 0)
    texture = even * (texture - rough * (-(rough / SOFTENED).square()).exp())
    return FaceParts(crop, fill[0], owner, own[0], tone[0], texture[0], tuple(spots))


def combine(parts: FaceParts, controls: Controls, chosen: Mapping[int, bool]) -> Float[Tensor, "3 size size"]:
    """The face with so much of each part: more of a control changes more where its part is, and nothing elsewhere.

    Args:
        parts: of `split_edit`.
        controls: the strengths.
        chosen: spots by number that are removed (or not) whatever their kind.

    Returns:
        RGB in [0, 1]; where nothing changes, the very pixels of the crop.
    """
    moles = controls.moles == "remove" and not controls.children
    removed = [chosen.get(number, spot.kind == "blemish" or moles) for number, spot in enumerate(parts.spots)]
    healed = torch.tensor([*removed, False], device=parts.owner.device)[parts.owner]  # -1 is the last
    change = controls.blemishes * (parts.fill * healed + parts.own)
    if not controls.children:
        change = change + controls.tone * parts.tone + controls.texture * parts.texture
    changed = (controls.strength * change).abs().sum(0) > 0
    return torch.where(changed, lab_to_srgb(srgb_to_lab(parts.crop) + controls.strength * change), parts.crop)


def _channels(like: Tensor, *share: float) -> Float[Tensor, "1 3 1 1"]:
    """Shares of L*, a* and b*."""
    return like.new_tensor(share).view(1, 3, 1, 1)
