"""Where the blemishes are when nobody painted them: small spots that stand out of the skin around them."""

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.pictures.color import srgb_to_lab
from reward_models.filters import blur, blur_inside

SCALES = (1.2, 2.0, 3.2)


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
    found = torch.zeros_like(skin)
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
            found[row] = torch.maximum(found[row], ((score - 3) / 3).clamp(0, 1))
    return blur(found, 0.5 * unit) * skin
