"""TOPIQ for faces (Chen et al., 2024), trained on CGFIQA: the face is cut to 512 px first.

pyiqa finds and aligns the face with RetinaFace; here the bundled mesh gives the five points, so that no further weights are needed.
Values differ from pyiqa's by what the two alignments differ.
"""

from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.metric import Pictures, Range, Score
from benchmarks.nets.fast import FastTopiq
from benchmarks.nets.pyiqa_nets import empty_net, fill, iqa_file, pyiqa_metric
from portraitkit.errors import FaceError
from portraitkit.faces.arcface import MOUTH_LEFT, MOUTH_RIGHT, NOSE_TIP
from portraitkit.faces.mesh import require_mesh
from portraitkit.faces.regions import LEFT_EYE, RIGHT_EYE
from portraitkit.faces.warp import sample, similarity

FILE = "topiq_nr_cgfiqa_res50-0a8b8e4f.pth"
SIDE = 512
TEMPLATE = ((192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15))
"""Right eye, left eye, tip of the nose, corners of the mouth, in a crop of 512 px: FFHQ's alignment as facexlib has it."""


def cut_face(pixels: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 512 512"] | None:
    """The aligned face, RGB in [0, 1]; None where there is none."""
    try:
        _, mesh = require_mesh(pixels)
    except FaceError:
        return None
    eyes = [mesh[list(eye), :2].mean(0) for eye in (RIGHT_EYE, LEFT_EYE)]
    points = torch.stack([*eyes, *mesh[[NOSE_TIP, MOUTH_RIGHT, MOUTH_LEFT], :2]])
    matrix = similarity(points[None], points.new_tensor(TEMPLATE)[None])
    return sample(pixels[None], matrix, SIDE, outside="border", mode="bicubic")[0].clamp(0, 1)


def open_topiq_nr_face(files: Mapping[str, Path]) -> Score:
    with patch("facexlib.utils.face_restoration_helper.FaceRestoreHelper"), patch("pyiqa.archs.topiq_arch.FaceRestoreHelper"):
        net = empty_net("topiq_nr-face", align_crop_face=False)
    fill(net, files[FILE])
    net = FastTopiq(net)

    def score(pictures: Pictures) -> Float[Tensor, " n"]:
        values = torch.full((len(pictures),), torch.nan)
        faces = {row: face for row, pixels in enumerate(pictures.pixels) if (face := cut_face(pixels)) is not None}
        if faces:
            values[list(faces)] = net.to(pictures.pixels.device)(torch.stack(list(faces.values()))).flatten().cpu()  # a number a face
        return values

    return score


METRIC = pyiqa_metric(
    "topiq_nr-face",
    "quality of the face",
    Range(0, 1),
    iqa_file(FILE, 180),
    open=open_topiq_nr_face,
    version=2,
    missing="no face was found in it",
)
