"""Does the picture show the same person as the photo: cosine of the bundled identity net's embeddings (dlib's ResNet, 128 numbers).

Its embeddings are not centred: two people may well have .8, so read differences, not the height.
"""

from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import face_metric
from benchmarks.metric import Range
from portraitkit.faces.identity import identity_cosine, identity_embedding
from portraitkit.faces.weights import FOLDER
from reward_models.photos import Photos


def same_person(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """Cosine with the photo itself, blemishes and all."""
    both = (identity_embedding(pixels, photos.meshes) for pixels in (candidates, photos.source))
    return identity_cosine(*both)


METRIC = face_metric(
    "identity_cosine",
    "same person (dlib)",
    lambda files: same_person,
    Range(-1, 1),
    licence="own code; weights: public domain (dlib), MIT (conversion)",
    bundled=(FOLDER / "face_recognition_model.bin",),
    revision="face-api 1.7.15",
)
