"""Near-duplicates: a 64-bit hash of the low frequencies finds candidates, a look at small copies confirms them."""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.fft import dctn
from torch import Tensor

from portraitkit.pictures.images import resize

SIDE = 32
BITS = 8


def small_copy(pixels: Float[Tensor, "3 h w"]) -> Float[ndarray, "32 32"]:
    """Luminance at 32 x 32, in [0, 1]."""
    red, green, blue = resize(pixels, (SIDE, SIDE)).numpy()
    return 0.299 * red + 0.587 * green + 0.114 * blue


def perceptual_hash(small: Float[ndarray, "32 32"]) -> Bool[ndarray, " 64"]:
    """Signs of the 8 x 8 lowest DCT frequencies about their median ("pHash", Zauner 2010): unmoved by size, JPEG and brightness."""
    low = np.asarray(dctn(small, norm="ortho"))[:BITS, :BITS].ravel()
    return low > np.median(low[1:])


def near_duplicates(
    hashes: Bool[ndarray, "n 64"], smalls: Float[ndarray, "n 32 32"], groups: list[str], *, max_bits: int, min_correlation: float
) -> list[tuple[int, int]]:
    """Pairs of pictures of different groups that look the same.

    Args:
        hashes: from `perceptual_hash`.
        smalls: from `small_copy`.
        groups: pictures of one group are not compared (a split, for instance).
        max_bits: most bits in which hashes differ.
        min_correlation: least correlation of the small copies, with their means removed.

    Returns:
        Indices (i, j), i < j.
    """
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)
    flat = smalls.reshape(len(smalls), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    labels = np.array(groups)
    found = []
    for start in range(0, len(signs), 512):
        differing = (hashes.shape[1] - signs[start : start + 512] @ signs.T) / 2
        near = (differing <= max_bits) & (labels[start : start + 512, None] != labels[None])
        for row, other in np.argwhere(near):
            one = start + int(row)
            if one < other and float(flat[one] @ flat[other]) >= min_correlation:
                found.append((one, int(other)))
    return found
