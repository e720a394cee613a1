"""Candidate generators: one file each, exporting `GENERATOR`; `open_generators` finds them by name or by file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.discover import load_object
from portraitkit.errors import ConfigError, nearest
from portraitkit.faces.regions import region_masks
from preference_data.people.photos import PhotoFace, PhotoRow, open_photo
from preference_data.people.synthetic import SEEDS, Case, make_case, paint_blemishes
from preference_data.people.synthetic_pairs import SPOTS, identity_of
from preference_data.schema import SPLITS, Origin

BUILT_IN = {name: f"preference_data.generators.{module}" for name, module in (("degradations", "degraded"), ("folder", "folder"))}
BUILT_IN |= {"pipeline": "preference_data.generators.pipeline", "rollout": "policies.retoucher.retouch.rollouts"}
"""Name -> module; the retoucher is a floor above this one, and found as a user's file is."""
CLEAN = "degradations:clean"
"""The generator that is given photos without painted blemishes and knows the truth all the same."""
TRUTH_OF = dict.fromkeys(("degradations", "degradations:gross", CLEAN), "degradation") | {"rollout": "verifiable"}
"""Generators that know the truth of their candidates, on photos with painted blemishes, too -> `Pair.annotator` of their pairs."""
NEAR = 0.02  # Of what is verifiable, in [0, 1]: differences up to it are ties
USAGE = "degradations[:gross, :clean], rollout, folder:PATH, pipeline:PATH_OR_HUB_ID or my_file.py:GENERATOR"


@dataclass(frozen=True)
class Subject:
    """One aligned photo of one face."""

    id: str  # unique, usable in file names
    # the crop with what is known of it: `source` is the photo, `clean` its label or, where blemishes were painted onto the photo, the
    # photo before; `opacity` of the blemishes
    case: Case
    label: Float[Tensor, "3 h w"] | None  # the photo's preferred retouch, RGB in [0, 1], where there is one
    split: str  # "train", "validation" or "held_out"
    synthetic: bool  # whether the photo itself was altered or made by code
    path: Path | None = None  # of the photo before alignment; None for the embedded people
    matrix: Float[Tensor, "2 3"] | None = None  # photo -> crop in pixels, see `portraitkit.faces.align`; None for the embedded people
    face: PhotoFace | None = None  # of the photo, before alignment; None for the embedded people


@dataclass(frozen=True)
class Candidate:
    """One retouch of a subject."""

    pixels: Float[Tensor, "3 h w"]  # RGB in [0, 1], of the size of the subject
    origin: Origin  # where it comes from
    scores: dict[str, int] | None = None  # true scores of the dimensions, 1 to 5, where the faults are known
    group: str | None = None  # candidates of one group are compared with each other only; None is compared with any other None
    # what is verifiable, in [0, 1], of each dimension and "overall"; of two candidates those within `NEAR` tie
    truth: dict[str, float] | None = None


@dataclass(frozen=True)
class GeneratorOptions:
    """What all generators get."""

    prompt: str  # editing instruction
    num_steps: int  # sampling steps
    device: str  # cpu, cuda, ...
    photos: Path | None = None  # folder of the photos, where there is one
    names: tuple[str, ...] = ()  # of the photos in it, relative to it


@runtime_checkable
class Generator(Protocol):
    """Makes candidates."""

    @property
    def name(self) -> str:
        """As recorded in `Origin.generator`."""
        ...

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """Up to `count` candidates of a subject, the same for the same seed; fewer where there are no more.

        Raises:
            UserError: this subject cannot be done; it is put into quarantine with the message.
        """
        ...


def open_generators(names: tuple[str, ...], options: GeneratorOptions) -> list[Generator]:
    """Open generators by name: a built-in's name, where it takes one with its argument after a colon, or `my_file.py:GENERATOR`.

    Raises:
        ConfigError: unknown, without the argument it needs, or two that would go by one name.
        WeightsError: a pipeline's weights are not there.
    """
    opened: list[Generator] = []
    for name in names:
        head, _, argument = name.partition(":")
        if head in BUILT_IN:
            generator = load_object(f"{BUILT_IN[head]}:GENERATOR")(argument or None, options)
        elif ":" in name:
            generator = load_object(name)(None, options)
        else:
            raise ConfigError(f"--generators {name}: unknown{nearest(name, BUILT_IN)}; use {USAGE}")
        if not isinstance(generator, Generator):
            raise ConfigError(f"--generators {name}: gives a {type(generator).__name__}, not a preference_data.generators.Generator")
        if any(generator.name == other.name for other in opened):
            raise ConfigError(f"--generators {name}: another one goes by the name {generator.name!r} too; leave it out, or rename a folder")
        opened.append(generator)
    return opened


def embedded_rows(count: int, shares: tuple[float, ...], seed: int) -> list[PhotoRow]:
    """The first `count` embedded people of a seed, every split with its share (at least one each)."""
    facts = {"source": "embedded", "licence": "public domain (NASA, US Navy), morphed", "consent": "public portraits of office holders"}
    sizes = {split: max(1, round(share * count)) if share else 0 for split, share in zip(SPLITS, shares, strict=True)}
    sizes["train"] = max(0, count - sizes["validation"] - sizes["held_out"])
    places = [(split, index) for split, size in sizes.items() for index in range(size)]
    return [
        PhotoRow(f"person-{number:05d}", split, "", facts, None, None, SEEDS[split] + seed * 100_003 + index, number + 1)
        for number, (split, index) in enumerate(places)
    ]


def open_subject(row: PhotoRow, size: int) -> tuple[Subject, str]:
    """The aligned photo and who it is."""
    if row.file is None:
        case = make_case(row.split, row.seed, size=size, count=SPOTS)
        return Subject(row.id, case, case.clean, row.split, synthetic=True), identity_of(case)
    photo = open_photo(row.file, row.anchor, size, row.face)
    skin = region_masks(photo.mesh, size, size, only=("skin",))["skin"]
    if photo.anchor is None:
        source, opacity = paint_blemishes(photo.pixels, skin, torch.Generator().manual_seed(row.seed), count=SPOTS)
        case = Case(source, photo.pixels, opacity, skin, photo.mesh, float("nan"))
    else:
        opacity = ((photo.pixels - photo.anchor).abs().amax(0, keepdim=True) * 8).clamp(0, 1) * skin
        case = Case(photo.pixels, photo.anchor, torch.where(opacity > 0.05, opacity, 0.0), skin, photo.mesh, float("nan"))
    return Subject(row.id, case, photo.anchor, row.split, photo.anchor is None, row.file, photo.matrix, photo.face), row.identity


def with_nothing_to_do(subject: Subject) -> Subject:
    """The subject whose photo is its honest retouch: what blemishes were painted onto, or the anchor."""
    return replace(subject, case=replace(subject.case, source=subject.case.clean, opacity=torch.zeros_like(subject.case.opacity)))


def without_paint(subject: Subject) -> Subject:
    """The subject as photographed: real retouchers get the real photo, not one with painted blemishes."""
    if subject.path is None or subject.label is not None:
        return subject
    return replace(with_nothing_to_do(subject), synthetic=False)
