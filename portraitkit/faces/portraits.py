"""Two portraits with a clear licence, read from installed packages: nothing is downloaded or copied into this one.

- "astronaut": Eileen Collins, NASA photograph, public domain as a work of the United States government; scikit-image
  ships it as `skimage/data/astronaut.png` (512 x 512).
- "grace_hopper": Grace Hopper, official United States Navy photograph, public domain as a work of the United States
  government; matplotlib ships it among its sample data as `grace_hopper.jpg` (512 x 600).

NASA and the Navy ask that their pictures not be used to suggest an endorsement.
"""

from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

SOURCES = {"astronaut": ("skimage", "data/astronaut.png"), "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")}


def bundled_portraits() -> dict[str, Float[Tensor, "3 h w"]]:
    """The two portraits: "astronaut" is 512 x 512, "grace_hopper" 512 wide and 600 high; RGB, [0, 1], by name."""
    pictures = {}
    for name, (package, path) in SOURCES.items():
        with (files(package) / path).open("rb") as file:
            pixels = np.asarray(Image.open(file).convert("RGB"))
        pictures[name] = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return pictures
