"""Face detection: BlazeFace (back model, 256 px), by Bazarevsky et al., 2019, https://arxiv.org/abs/1907.05047."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from portraitkit.errors import FaceError
from portraitkit.faces.tfjs import load_graph
from portraitkit.faces.warp import sample
from portraitkit.pictures.images import Pixels, rescaled

INPUT = 256
MIN_SCORE = 0.5
MIN_SECOND_SCORE = 0.65
MAX_OVERLAP = 0.3
MAX_SHARED = 0.6
BATCH = 8  # Windows that the net looks at together
SECOND_LOOK = 2.5
WINDOW = 12  # Sides of a face that a window may have at most, for the face to be seen in it
LEAST = 32  # Pixels; for smaller faces no window is made
MAX_SIDE = 1536
KEYPOINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixels of the picture.

    "Right" and "left" are the person's own: in an upright picture the right eye has the smaller x.
    """

    box: Box  # x0, y0, x1, y1. A square from the forehead to the chin; it may reach beyond the picture
    score: float  # Probability of a face, in [0, 1]
    keypoints: Float[Tensor, "6 2"]  # x, y of the right eye, left eye, nose tip, mouth, right ear, left ear

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@cache
def _anchors() -> Float[Tensor, "896 2"]:
    """Anchor centres in input pixels: two per cell of the 16 x 16 grid, then six per cell of the 8 x 8 grid."""
    layers = []
    for cells, per_cell in ((16, 2), (8, 6)):
        centres = (torch.arange(cells) + 0.5) * (INPUT / cells)
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        layers.append(torch.stack([x, y], -1).reshape(-1, 2).repeat_interleave(per_cell, 0))
    return torch.cat(layers)


def _predict(windows: Float[Tensor, "batch 3 256 256"]) -> tuple[Tensor, Tensor]:
    """Scores (batch, 896) and points (batch, 896, 8, 2) in input pixels: two box corners, then six keypoints."""
    outputs = load_graph("blazeface", windows.device)(windows * 2 - 1).values()
    scores = torch.cat(sorted((o for o in outputs if o.shape[-1] == 1), key=lambda o: -o.shape[1]), 1)[..., 0].sigmoid()
    raw = torch.cat(sorted((o for o in outputs if o.shape[-1] == 16), key=lambda o: -o.shape[1]), 1).unflatten(-1, (8, 2))
    anchors = _anchors().to(raw)[None, :, None]
    centre, half = raw[:, :, :1] + anchors, raw[:, :, 1:2] / 2
    return scores, torch.cat([centre - half, centre + half, raw[:, :, 2:] + anchors], 2)


def _look(image: Pixels, windows: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the net on square windows (x0, y0, side), which may reach beyond the picture.

    Returns scores (n,), points (n, 8, 2) in picture pixels and the number (n,) of the window that each was seen in,
    best score first.
    """
    height, width = image.shape[1:]
    squares = [(round(x0), round(y0), max(round(side), 1)) for x0, y0, side in windows]

    def cut(x0: int, y0: int, side: int) -> Tensor:
        inner = image[:, max(y0, 0) : max(y0 + side, 0), max(x0, 0) : max(x0 + side, 0)]
        padding = (max(-x0, 0), max(x0 + side - width, 0), max(-y0, 0), max(y0 + side - height, 0))
        return rescaled(F.pad(inner, padding), (INPUT, INPUT), "bilinear")

    batches = [squares[start : start + BATCH] for start in range(0, len(squares), BATCH)]
    seen = [_predict(torch.stack([cut(*square) for square in batch])) for batch in batches]
    scores, points = (torch.cat(parts) for parts in zip(*seen, strict=True))
    place = torch.tensor(squares).to(points)[:, None, None]
    points = points * place[..., 2:] / INPUT + place[..., :2]
    window, anchor = (scores > MIN_SCORE).nonzero(as_tuple=True)
    order = scores[window, anchor].argsort(descending=True)
    window, anchor = window[order], anchor[order]
    keep = batched_nms(points[window, anchor, :2].flatten(1), scores[window, anchor], window, MAX_OVERLAP)
    window, anchor = window[keep], anchor[keep]
    return scores[window, anchor], points[window, anchor], window


def best_score(image: Pixels, window: Float[Tensor, "1 2 3"]) -> float:
    """The highest score in a window of the picture, in [0, 1]; it may be turned: `window` maps the picture onto the net's 256 px."""
    return float(_predict(sample(image[None], window, INPUT))[0].max())


def _confirm(image: Pixels, windows: list[tuple[float, float, float]]) -> list[Face]:
    """Look for candidates, look at each again at the net's favourite size, and keep those that are seen both times."""
    scores, points, _ = _look(image, windows)
    seen = points[nms(points[:, :2].flatten(1), scores, MAX_OVERLAP)]
    if not len(seen):
        return []
    middle, size = seen[:, :2].mean(1), (seen[:, 1] - seen[:, 0]).amax(-1)
    near = torch.cat([middle - size[:, None] * SECOND_LOOK / 2, size[:, None] * SECOND_LOOK], 1)
    scores, points, window = _look(image, [tuple(row) for row in near.tolist()])
    overlap = box_iou(points[:, :2].flatten(1), seen[:, :2].flatten(1)).gather(1, window[:, None])[:, 0]
    found = [
        Face(tuple(face[:2].flatten().tolist()), score, face[2:])
        for score, face, shared in zip(scores.tolist(), points.cpu(), overlap.tolist(), strict=True)
        if score > MIN_SECOND_SCORE and shared > MAX_OVERLAP
    ]
    return _joined([], found)


def _joined(faces: list[Face], more: list[Face]) -> list[Face]:
    """Faces and those of others that are not seen in them already, largest first."""
    faces = list(faces)
    for candidate in more:
        if all(_shared_area(candidate.box, other.box) < MAX_SHARED for other in faces):
            faces.append(candidate)
    return sorted(faces, key=lambda face: -face.size)


def _shared_area(a: Box, b: Box) -> float:
    """The share of the smaller box that both boxes cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def _scaled(box: Box, factor: float) -> Box:
    x0, y0, x1, y1 = box
    return x0 * factor, y0 * factor, x1 * factor, y1 * factor


@torch.no_grad()
def detect_faces(image: Pixels, smallest: int | None = None) -> list[Face]:
    """Faces of a picture of any size, largest first; empty if there is none.

    The picture is looked at as a whole and from further away (a face may fill it); if that shows no face, in nine overlapping tiles of half
    its size (small faces). Every candidate is looked at a second time. Pictures larger than 1536 px are reduced to that first. `smallest`
    is a side in pixels down to which faces beside larger ones are looked for, too, in ever smaller windows of the picture at its full size;
    the large ones are enough if not given.

    A detector alone takes some things for faces: `mesh.require_mesh` is the stricter judge.
    """
    height, width = image.shape[1:]
    side = float(max(height, width))
    if smallest is not None:
        windows, window = [], side / 2
        while window >= WINDOW * max(smallest, LEAST):
            across, down = (max(math.ceil(2 * length / window) - 1, 1) for length in (width, height))
            windows += [(x * window / 2, y * window / 2, window) for y in range(down) for x in range(across)]
            window /= 2
        return _joined(detect_faces(image), _confirm(image, windows) if windows else [])
    if side > MAX_SIDE:
        factor = MAX_SIDE / side
        small = (max(round(height * factor), 1), max(round(width * factor), 1))
        faces = detect_faces(rescaled(image, small, "bilinear"))
        return [Face(_scaled(face.box, 1 / factor), face.score, face.keypoints / factor) for face in faces]
    left, top = (width - side) / 2, (height - side) / 2
    faces = _confirm(image, [(left - side * by / 2, top - side * by / 2, side * (1 + by)) for by in (0, 0.5, 1.0)])
    if not faces and side > INPUT:
        offsets = (0, side / 4, side / 2)
        faces = _confirm(image, [(left + dx, top + dy, side / 2) for dy in offsets for dx in offsets])
    return faces


def no_face(path: Path | None) -> FaceError:
    """The error for a picture without a face."""
    return FaceError(f"{prefix(path)}no face found: use a picture that shows one from the front, upright and lit")


def check_size(face: Face, path: Path | None, min_size: int) -> None:
    """Raise FaceError if a face is smaller than `min_size` pixels."""
    if face.size < min_size:
        raise FaceError(f"{prefix(path)}face of {int(face.size)} px: at least {min_size} needed, use a larger picture")


def prefix(path: Path | None) -> str:
    """The start of a message about a picture."""
    return f"{path}: " if path else ""
