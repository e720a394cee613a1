"""ArcFace cosine (Deng et al., 2019) with the photo, by insightface's recognition net: the identity column of the published tables."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import Measure, face_metric
from benchmarks.metric import Range, WeightFile
from portraitkit.faces.arcface import open_arcface
from reward_models.photos import Photos

NET = "w600k_r50.onnx"


def load_cosine(files: Mapping[str, Path]) -> Measure:
    """The measure.

    Raises:
        WeightsError: onnxruntime is missing, or the file is no ArcFace net.
    """
    judge = open_arcface(files[NET])

    def cosine(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        after, before = (judge.embedding(pixels, photos.meshes) for pixels in (candidates, photos.source))
        return 1 - judge.distance(after, before)

    return cosine


METRIC = face_metric(
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
