"""The first stage of the embedded model: its vision tower learns to see faces, shapes and retouches.

A linear map of the untrained tower's tokens finds the colour of lipstick to dE76 10 where two faces are all there is, but only to 22 on
530 people, and names 39 % of their expressions: people stand, turn and are built differently, so what matters is not always at one place.
So the tower is taught alone, before the language part: linear heads on all places of its tokens predict the facts of each task's rows and,
on faces, 53 landmarks, which say where everything is. The heads are thrown away.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor

from portraitkit.faces.mesh import crop_matrix, face_meshes
from portraitkit.files.jsonl import append_line
from tools.embedded.muon import MuonAdamW
from tools.embedded.vlm_facts import FACTS, Facts

PAIRS = (
    *((70, 300), (63, 293), (105, 334), (66, 296), (107, 336)),  # brows
    *((33, 263), (160, 387), (158, 385), (133, 362), (153, 380), (144, 373)),  # eyes
    *((98, 327), (61, 291), (39, 269), (181, 405), (82, 312), (87, 317), (78, 308)),  # nose and mouth
    *((234, 454), (172, 397), (50, 280), (205, 425)),  # jaw and cheeks
)
"""Landmarks of the mesh and those on the other side of the face."""
POINTS = [point for pair in PAIRS for point in pair] + [1, 4, 168, 0, 17, 13, 14, 152, 10]
MIRRORED = [place ^ 1 for place in range(2 * len(PAIRS))] + list(range(2 * len(PAIRS), len(POINTS)))
SPREAD = 4.0
"""Pixels that landmarks lie from their mean, about."""
SHIFT = 6
"""Pixels by which a face's picture is moved at most, either way."""
NARROW = 24
"""Channels that the places' tokens are brought down to before a head."""
FACES, OTHERS = 48, {"area": 8, "preference": 4}
"""Rows in one update: faces, shared out by how many rows each task has, and others by kind."""


@dataclass(frozen=True)
class See:
    """Updates of the tower, and the learning rates of its matrices and of the rest; they fall to 0 over the last half."""

    steps: int
    muon_learning_rate: float = 0.02
    learning_rate: float = 2e-3


@dataclass(frozen=True, eq=False)
class Sights:
    """A task's rows for the tower.

    Attributes:
        facts: how the rows' facts are predicted.
        pictures: of faces as 8-bit pictures, of other rows as patches, rows x pictures x patches x values.
        grid: of other rows, patches down and across.
        true: the facts.
        landmarks: of faces, `POINTS` in pixels.
    """

    facts: Facts
    pictures: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n pictures patches values"]
    grid: Tensor | None
    true: Float[Tensor, "n facts"]
    landmarks: Float[Tensor, "n points 2"] | None = None


class Heads(torch.nn.Module):
    """Linear heads on all places of the tokens of a row's pictures, and on their mean, for each kind of facts and for landmarks.

    Args:
        width: of a token.
        places: kind -> tokens of a row.
        pictures: kind -> pictures of a row.
        outputs: kind -> numbers predicted.
    """

    def __init__(self, width: int, places: Mapping[str, int], pictures: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.narrow = torch.nn.ModuleDict({kind: torch.nn.Linear(width, NARROW) for kind in outputs})
        self.place = torch.nn.ModuleDict({kind: torch.nn.Linear(NARROW * places[kind], count) for kind, count in outputs.items()})
        self.mean = torch.nn.ModuleDict({kind: torch.nn.Linear(width * pictures[kind], count) for kind, count in outputs.items()})
        for layer in (*self.place.values(), *self.mean.values()):
            for parameter in layer.parameters():
                torch.nn.init.zeros_(parameter)

    def forward(self, kind: str, tokens: Float[Tensor, "n pictures places width"]) -> tuple[Tensor, Tensor]:
        """What either head predicts, n x outputs."""
        return self.place[kind](self.narrow[kind](tokens).flatten(1)), self.mean[kind](tokens.mean(2).flatten(1))


Look = Callable[[Tensor, Tensor], Tensor]
"""(patches, n x patches x values; grid) -> tokens, n x tokens x width."""


def teach_to_see(
    model: Any,
    processor: Any,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    validation: Mapping[str, Sequence[Mapping[str, Any]]],
    see: See,
    look: Look,
    keep: Path,
    console: Console,
) -> None:
    """Train the tower on facts and landmarks.

    Args:
        model: whose tower is trained; the language part is not asked.
        processor: makes patches of pictures.
        rows: of each task.
        validation: rows of each task; a part behind a comma is no part of the task's name.
        see: how long and how fast.
        look: gives tokens of patches, with gradients.
        keep: file for the trained tower; where it is there already, it is taken. What is found of validation rows goes to its .jsonl.
        console: for a line of losses every 50 updates.
    """
    tower = model.model.visual
    if keep.is_file():
        tower.load_state_dict(torch.load(keep, weights_only=True))
        return
    taught = {name: _sights(name, some, processor) for name, some in rows.items()}
    asked = {name: _sights(name, some, processor) for name, some in validation.items()}
    faces = {name: len(sights.true) for name, sights in taught.items() if sights.landmarks is not None}
    middle = torch.cat([sights.landmarks for sights in taught.values() if sights.landmarks is not None]).mean(0)
    heads = _heads(taught, processor, look)
    named = [(f"visual.{name}", value) for name, value in tower.named_parameters()]
    named += [(f"read.{name}", value) for name, value in heads.named_parameters()]
    optimizer = MuonAdamW(named, muon_learning_rate=see.muon_learning_rate, learning_rate=see.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * min(1.0, max(0.02, 2 * (see.steps - step) / see.steps))
    )
    started, sums = time.monotonic(), dict.fromkeys([*FACTS, "landmarks"], 0.0)
    for step in range(1, see.steps + 1):
        optimizer.zero_grad()
        losses = _face_losses(taught, faces, heads, middle, processor, look)
        for kind, count in OTHERS.items():
            some = [sights for sights in taught.values() if sights.landmarks is None and sights.facts is FACTS[kind]]
            if some:
                losses[kind] = 0.5 * _other_loss(kind, some[step % len(some)], count, heads, look)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_([value for _, value in named], 1.0)
        optimizer.step()
        schedule.step()
        for kind, loss in losses.items():
            sums[kind] += float(loss.detach()) / 50
        if step % 50 == 0:
            figures = "  ".join(f"{kind} {value:.3f}" for kind, value in sums.items())
            console.print(f"see {step}/{see.steps}, {time.monotonic() - started:.0f} s  {figures}", highlight=False, soft_wrap=True)
            sums = dict.fromkeys(sums, 0.0)
        if step % 200 == 0 or step == see.steps:
            append_line(keep.with_suffix(".jsonl"), {"step": step, **_examine(asked, heads, processor, look)})
    torch.save(tower.state_dict(), keep)


def _sights(name: str, rows: Sequence[Mapping[str, Any]], processor: Any) -> Sights:
    """A task's rows for the tower; faces are what has facts of makeup or emotion."""
    task = name.split(",")[0]
    kind, facts = next((kind, facts) for kind, facts in FACTS.items() if task in facts.tasks)
    true = torch.tensor([facts.read(row["columns"]) for row in rows])
    if kind in OTHERS:
        patches, grid = patches_of(processor, [picture.permute(2, 0, 1) for row in rows for picture in row["pictures"]])
        return Sights(facts, patches.unflatten(0, (len(rows), -1)), grid, true)
    pictures = torch.stack([row["pictures"][0] for row in rows]).permute(0, 3, 1, 2)
    return Sights(facts, pictures, None, true, landmarks_of(pictures))


@torch.no_grad()
def landmarks_of(pictures: UInt8[Tensor, "n 3 128 128"]) -> Float[Tensor, "n points 2"]:
    """`POINTS` of faces that fill their pictures, found without a detector: all faces of the rows stand on one stage."""
    found = []
    for part in pictures.split(64):
        crops = crop_matrix(torch.tensor([[64.0, 66.0]]).expand(len(part), 2), torch.full((len(part),), 140.0), torch.zeros(len(part)))
        found.append(face_meshes(part.float() / 255, crops)[0][:, POINTS, :2])
    return torch.cat(found)


def patches_of(processor: Any, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(patches, n x patches x values; grid of one picture) of 8-bit pictures that are equally large once scaled."""
    found = [processor.image_processor(list(pictures[start : start + 256]), return_tensors="pt") for start in range(0, len(pictures), 256)]
    patches = torch.cat([part["pixel_values"] for part in found])
    return patches.view(len(pictures), -1, patches.shape[-1]), found[0]["image_grid_thw"][:1]


def _heads(taught: Mapping[str, Sights], processor: Any, look: Look) -> Heads:
    """Heads for as many places as each kind's rows have."""
    places, pictures, width = {}, {}, 0
    with torch.no_grad():
        for sights in taught.values():
            kind = next(kind for kind, facts in FACTS.items() if facts is sights.facts)
            tokens = _tokens(sights, torch.zeros(1, dtype=torch.long), processor, look)
            width = tokens.shape[-1]
            for one in [kind] if sights.landmarks is None else [kind, "landmarks"]:
                pictures[one], places[one] = tokens.shape[1], tokens.shape[1] * tokens.shape[2]
    outputs = {kind: FACTS[kind].outputs if kind in FACTS else 2 * len(POINTS) for kind in places}
    return Heads(width, places, pictures, outputs)


def _tokens(sights: Sights, index: Tensor, processor: Any, look: Look) -> Float[Tensor, "n pictures places width"]:
    """Tokens of some rows, as they are."""
    if sights.grid is None:
        return look(*patches_of(processor, list(sights.pictures[index])))[:, None]
    patches = sights.pictures[index]
    return look(patches.flatten(0, 1), sights.grid).unflatten(0, patches.shape[:2])


def _face_losses(
    taught: Mapping[str, Sights], faces: Mapping[str, int], heads: Heads, middle: Tensor, processor: Any, look: Look
) -> dict[str, Tensor]:
    """Losses of random faces, moved and mirrored at random: of the facts of each kind, and of the landmarks."""
    names = random.choices(list(faces), weights=list(faces.values()), k=FACES)
    chosen = {name: torch.randint(faces[name], (names.count(name),)) for name in faces if name in names}
    pictures, landmarks = [], []
    for name, index in chosen.items():
        for picture, points in zip(taught[name].pictures[index], taught[name].landmarks[index], strict=True):
            both = moved(picture, points)
            pictures.append(both[0])
            landmarks.append(both[1])
    tokens = look(*patches_of(processor, pictures))[:, None]
    far = ((torch.stack(landmarks) - middle) / SPREAD).flatten(1)
    losses = {"landmarks": 4 * torch.stack([F.smooth_l1_loss(found, far, beta=0.25) for found in heads("landmarks", tokens)]).sum()}
    start = 0
    for name, index in chosen.items():
        facts, true = taught[name].facts, taught[name].true[index]
        kind = next(kind for kind, one in FACTS.items() if one is facts)
        both = heads(kind, tokens[start : start + len(index)])
        loss = torch.stack([facts.loss(found, true) for found in both]).sum() * len(index) / (FACES / 2)
        losses[kind] = losses[kind] + loss if kind in losses else loss
        start += len(index)
    return losses


def _other_loss(kind: str, sights: Sights, count: int, heads: Heads, look: Look) -> Tensor:
    """Loss of the facts of random rows that show no single face."""
    index = torch.randint(len(sights.true), (count,))
    tokens = _tokens(sights, index, None, look)
    return torch.stack([sights.facts.loss(found, sights.true[index]) for found in heads(kind, tokens)]).sum()


def moved(picture: UInt8[Tensor, "3 h w"], landmarks: Float[Tensor, "points 2"]) -> tuple[Tensor, Tensor]:
    """A picture moved by up to `SHIFT` pixels either way, its edge repeated, and in every second case mirrored; and its landmarks."""
    height, width = picture.shape[1:]
    right, down = random.randint(0, 2 * SHIFT), random.randint(0, 2 * SHIFT)
    wide = F.pad(picture.float()[None], (SHIFT,) * 4, mode="replicate")[0].to(picture.dtype)
    picture = wide[:, down : down + height, right : right + width]
    landmarks = landmarks - torch.tensor([right - SHIFT, down - SHIFT])
    if random.random() < 0.5:
        picture = picture.flip(-1)
        landmarks = torch.stack([width - 1 - landmarks[:, 0], landmarks[:, 1]], 1)[MIRRORED]
    return picture, landmarks


@torch.no_grad()
def _examine(asked: Mapping[str, Sights], heads: Heads, processor: Any, look: Look) -> dict[str, dict[str, float]]:
    """What the heads on all places find of each task's rows."""
    found = {}
    for name, sights in asked.items():
        kind = next(kind for kind, facts in FACTS.items() if facts is sights.facts)
        predicted = heads(kind, _tokens(sights, torch.arange(len(sights.true)), processor, look))[0]
        figures = sights.facts.describe(predicted, sights.true)
        found[name] = {figure: round(value, 3) for figure, value in figures.items() if math.isfinite(value)}
    return found
