"""Does the picture show the same person as the photo: cosines of two recognition nets' embeddings.

dlib's ResNet, which is bundled (128 numbers, not centred: two people may well have .8, so read differences, not the height), and ArcFace
(Deng et al., 2019) by insightface's net, the identity column of the published tables.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import Measure, face_metric
from benchmarks.metric import Range, WeightFile
from portraitkit.faces.arcface import open_arcface
from portraitkit.faces.identity import identity_cosine, identity_embedding
from portraitkit.faces.tfjs import FOLDER
from reward_models.photos import Photos

NET = "w600k_r50.onnx"


def same_person(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """Cosine with the photo itself, blemishes and all."""
    both = (identity_embedding(pixels, photos.meshes) for pixels in (candidates, photos.source))
    return identity_cosine(*both)


def load_cosine(files: Mapping[str, Path], device: str = "cpu") -> Measure:
    """The measure; WeightsError: onnxruntime is missing, or the file is no ArcFace net."""
    judge = open_arcface(files[NET], device)

    def cosine(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        after, before = (judge.embedding(pixels, photos.meshes) for pixels in (candidates, photos.source))
        return 1 - judge.distance(after, before)

    return cosine


ARCFACE = face_metric(
    "arcface",
    "same person (ArcFace)",
    load_cosine,
    Range(-1, 1),
    licence="own code; weights: insightface, non-commercial research only",
    weights=(
        WeightFile(NET, "https://github.com/deepinsight/insightface/releases (buffalo_l.zip; or ~/.insightface/models/buffalo_l)", mib=166),
    ),
    revision="buffalo_l v0.7",
)
IDENTITY_COSINE = face_metric(
    "identity_cosine",
    "same person (dlib)",
    lambda files: same_person,
    Range(-1, 1),
    licence="own code; weights: public domain (dlib), MIT (conversion)",
    bundled=(FOLDER / "face_recognition_model.bin",),
    revision="face-api 1.7.15",
)
