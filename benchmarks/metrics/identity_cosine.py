"""Does the picture show the same person as the photo: cosine of the bundled identity net's embeddings (dlib's ResNet, 128 numbers).

Its embeddings are not centred: two people may well have .8, so read differences, not the height.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import MIN_FACE, NO_FACE, on_faces
from benchmarks.metric import Metric, Range, Score
from portraitkit.faces.identity import identity_cosine, identity_embedding
from portraitkit.faces.weights import FOLDER
from reward_models.photos import Photos


def same_person(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """Cosine with the photo itself, blemishes and all."""
    both = (identity_embedding(pixels, photos.meshes) for pixels in (candidates, photos.source))
    return identity_cosine(*both)


def open_identity(files: Mapping[str, Path]) -> Score:
    """The scoring function."""
    return partial(on_faces, same_person)


METRIC = Metric(
    name="identity_cosine",
    title="same person (dlib)",
    direction="higher",
    range=Range(-1, 1),
    reference="source",
    licence="own code; weights: public domain (dlib), MIT (conversion)",
    open=open_identity,
    bundled=(FOLDER / "face_recognition_model.bin",),
    revision="face-api 1.7.15",
    smallest=MIN_FACE,
    missing=NO_FACE,
)
