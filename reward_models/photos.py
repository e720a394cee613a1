"""What a reward knows about the photos being retouched: computed once a photo, shared by every candidate of its group."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.faces.identity import identity_embedding
from portraitkit.faces.regions import region_masks
from portraitkit.pictures.images import srgb_to_lab
from reward_models.filters import blur, blur_inside

SCALES = (1.2, 2.0, 3.2)


@dataclass(frozen=True)
class Photos:
    """A batch of photos to be retouched. Images are RGB in [0, 1], masks are in [0, 1].

    Rewards take one photo a candidate, or a single one that all candidates are retouches of: it broadcasts over them.
    """

    source: Float[Tensor, "n 3 h w"]  # the photos as taken
    meshes: Float[Tensor, "n 468 2"]  # 468 landmarks (x, y) a photo, in pixels
    skin: Float[Tensor, "n 1 h w"]  # the skin of the face
    features: Float[Tensor, "n 1 h w"]  # the face without its skin: eyes, brows, lips
    opacity: Float[Tensor, "n 1 h w"]  # opacity of the blemishes: the truth on synthetic photos, else what `detect_blemishes` finds
    clean: Float[Tensor, "n 3 h w"]  # the portrait without blemishes, NaN where it is not known
    # identity embedding of the clean portrait where it is known (blemishes are not identity), else of the source
    identity: Float[Tensor, "n 128"]

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        source: Float[Tensor, "n 3 h w"],
        meshes: Float[Tensor, "n 468 dim"],
        *,
        opacity: Float[Tensor, "n 1 h w"] | None = None,
        clean: Float[Tensor, "n 3 h w"] | None = None,
    ) -> Self:
        """Regions, identity and (where not given) blemishes of photos whose landmarks are known."""
        meshes = meshes[..., :2].contiguous()
        regions = [region_masks(mesh, *source.shape[-2:], only=("skin", "face_oval")) for mesh in meshes]
        skin = torch.stack([region["skin"] for region in regions])
        face = torch.stack([region["face_oval"] for region in regions])
        return cls(
            source=source,
            meshes=meshes,
            skin=skin,
            features=(face - skin).clamp(0, 1),
            opacity=detect_blemishes(source, skin) if opacity is None else opacity,
            clean=torch.full_like(source, torch.nan) if clean is None else clean,
            identity=identity_embedding(source if clean is None else clean, meshes),
        )

    def __len__(self) -> int:
        return len(self.source)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With each tensor changed, as moved."""
        return type(self)(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def select(self, index: Int[Tensor, " k"] | slice) -> Self:
        """The photos at `index`; a slice copies nothing."""
        return self.each(lambda part: part[index])


def detect_blemishes(image: Float[Tensor, "n 3 h w"], skin: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Opacity-like map of spots, in [0, 1].

    At each of three scales (Gaussian, in pixels of a 128 px face) a pixel's CIELAB colour is compared with that of the skin
    around it; a spot is darker or redder than its surroundings by more than three robust standard deviations (1.4826 MAD over the skin).
    Everything off the skin stays at 0. Not reliable: wrinkles and the edges of the face are taken for spots too (docs/rewards.md has
    its precision and recall); give photos an anchor and it only says where to look, not what to reach.
    """
    unit = image.shape[-1] / 128
    lab = srgb_to_lab(image)
    solid = (skin > 0.9).to(image.dtype)
    spots = torch.zeros_like(skin)
    for scale in SCALES:
        centre = blur_inside(lab, solid, scale * unit)
        around = blur_inside(lab, solid, 4 * scale * unit)
        stands_out = ((around - centre) * image.new_tensor([1.0, -1.0, 0.0]).view(3, 1, 1)).clamp_min(0).norm(dim=1, keepdim=True)
        for row in range(len(image)):
            inside = stands_out[row][solid[row] > 0]
            if inside.numel() == 0:
                continue
            median = inside.median()
            spread = 1.4826 * (inside - median).abs().median() + 0.4
            score = (stands_out[row] - median) / spread
            spots[row] = torch.maximum(spots[row], ((score - 3) / 3).clamp(0, 1))
    return blur(spots, 0.5 * unit) * skin
