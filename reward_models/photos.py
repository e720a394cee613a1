"""What a reward knows about the photos being retouched: computed once a photo, shared by every candidate of its group."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from portraitkit.faces.identity import identity_embedding
from portraitkit.faces.regions import region_masks
from reward_models.blemish_detector import detect_blemishes


@dataclass(frozen=True)
class Photos:
    """A batch of photos to be retouched. Images are RGB in [0, 1], masks are in [0, 1].

    Rewards take one photo a candidate, or a single one that all candidates are retouches of: it broadcasts over them.

    Attributes:
        source: the photos as taken.
        meshes: 468 landmarks (x, y) a photo, in pixels.
        skin: the skin of the face.
        features: the face without its skin: eyes, brows, lips.
        opacity: opacity of the blemishes: the truth on synthetic photos, else what `detect_blemishes` finds.
        clean: the portrait without blemishes, NaN where it is not known.
        identity: identity embedding of the clean portrait where it is known (blemishes are not identity), else of the source.
    """

    source: Float[Tensor, "n 3 h w"]
    meshes: Float[Tensor, "n 468 2"]
    skin: Float[Tensor, "n 1 h w"]
    features: Float[Tensor, "n 1 h w"]
    opacity: Float[Tensor, "n 1 h w"]
    clean: Float[Tensor, "n 3 h w"]
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
        regions = [region_masks(mesh, *source.shape[-2:]) for mesh in meshes]
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

    def select(self, index: Int[Tensor, " k"] | slice) -> Self:
        """The photos at `index`; a slice copies nothing."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})
