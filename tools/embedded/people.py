"""Real people for the embedded models: the faces of a folder of portraits, photographed anew for every case and row.

Nothing of a picture is kept but in the work folder; what the weights saw is told by `Faces.sets` and `Faces.hashes`.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from policies.retoucher.photos import faces_cache
from policies.vlm.tasks.synthetic_rows import make_target
from portraitkit.errors import DataError, UserError
from portraitkit.faces.regions import region_masks
from portraitkit.files.jsonl import read_objects
from preference_data.people import synthetic
from preference_data.people.photos import folder_rows, open_photo

AS_THEY_ARE, RESHAPED = 0.6, 0.25
"""Shares of the cases that show a person as photographed, and with another face shape and skin tone; the rest are morphs of two people."""
SPOTS = (3, 14)
LIPS_PARTED = 0.012
"""Distance between the lips' inner edges as a share of the face's height, from which on teeth or the mouth's inside are seen."""
WANTED: dict[str, Callable[[Mapping[str, str]], bool]] = {
    "emotion": lambda row: row.get("expression") == "neutral",
    "smiles": lambda row: row.get("expression") == "smiling",
    "makeup": lambda row: row.get("gender") == "man" or row.get("expression") in ("neutral", "smiling"),
}
"""Whose photos suit a task's rows, by what the folder says of each: a face at rest; and a person who hardly wears makeup in the photo
already, which is a man or somebody photographed for a study."""


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces of one split, aligned on the stage of `synthetic`.

    Attributes:
        images: RGB.
        meshes: landmarks in pixels of the stage.
        identities: who each is.
        sets: source and licence -> number of photos.
        hashes: first 12 hexadecimal digits of each file's sha256.
    """

    images: UInt8[Tensor, "n 3 s s"]
    meshes: Float[Tensor, "n 468 2"]
    identities: list[str]
    sets: dict[str, int]
    hashes: list[str]


def read_faces(folder: Path, split: str, work: Path) -> Faces:
    """The faces of a folder's split; kept in `work`, so that they are found once.

    Args:
        folder: of portraits, as `make-preferences build` takes them; people are told apart as there.
        split: "train" or "validation".
        work: folder for what is kept.

    Raises:
        DataError: the folder is missing or holds no photo that can be used.
    """
    kept = work / f"faces-{split}.pt"
    if not kept.is_file():
        rows, _ = folder_rows(
            folder,
            shares=(0.8, 0.1, 0.1),
            seed=0,
            cache=faces_cache(folder),
            facts={"source": folder.name},
        )
        images, meshes, identities, hashes, sets = [], [], [], [], Counter()
        for row in rows:
            if row.split != split or row.file is None:
                continue
            try:
                photo = open_photo(row.file, None, synthetic.STAGE, row.face)
            except UserError:
                continue
            images.append((photo.pixels * 255).round().to(torch.uint8))
            meshes.append(photo.mesh)
            identities.append(row.identity)
            hashes.append(sha256(row.file.read_bytes()).hexdigest()[:12])
            sets[f"{row.facts['source']}, {row.facts.get('licence', 'no licence named')}"] += 1
        faces = Faces(torch.stack(images), torch.stack(meshes), identities, dict(sets), hashes)
        torch.save(vars(faces), kept)
    return Faces(**torch.load(kept, weights_only=True))


def draw_case(faces: Faces, seed: int, *, size: int = 128) -> synthetic.Case:
    """One blemished photo of one of the people, or of a person between two of them; equal seeds give equal cases."""
    generator = torch.Generator().manual_seed(seed)
    return synthetic.blemished(draw_person(faces, generator, size=size), generator, SPOTS)


def draw_person(faces: Faces, generator: torch.Generator, *, size: int = 128) -> synthetic.Person:
    """A photo of one of the people, or of a person between two of them."""
    first = int(torch.randint(len(faces.images), (1,), generator=generator))
    draw = float(torch.rand(1, generator=generator))
    if draw < AS_THEY_ARE:
        landmarks = faces.meshes[first]
        skin = region_masks(landmarks, synthetic.STAGE, synthetic.STAGE, only=("skin",))["skin"]
        changed = draw < AS_THEY_ARE / 2
        return synthetic.photograph(faces.images[first].float() / 255, landmarks, skin, generator, size=size, changed=changed)
    other = first if draw < AS_THEY_ARE + RESHAPED else int(torch.randint(len(faces.images), (1,), generator=generator))
    pair = [first, other]
    return synthetic.make_person("train", generator, size=size, faces=(faces.images[pair].float() / 255, faces.meshes[pair]))


def smile_row(split: str, seed: int, *, draw: Callable[[torch.Generator], synthetic.Person]) -> dict[str, Any]:
    """A row of the emotion task that shows a real smile, nothing rendered: AU6 and AU12, and AU25 where the lips are parted.

    Args:
        split: of the people; kept as a column.
        seed: of the draw.
        draw: gives photos of people who were asked to smile.
    """
    person = draw(torch.Generator().manual_seed(seed))
    upper, lower, forehead, chin = person.mesh[[13, 14, 10, 152]]
    parted = float((upper - lower).norm() / (forehead - chin).norm()) > LIPS_PARTED
    units = ["AU6", "AU12", *(["AU25"] if parted else [])]
    target = make_target([int(unit[2:]) for unit in units], "happiness")
    return {"image": person.clean, "AUs": units, "labels": ["happiness"], "target": target, "split": split, "seed": seed}


def those(faces: Faces, folder: Path, wanted: Callable[[Mapping[str, str]], bool]) -> Faces:
    """The faces whose row in the folder's `metadata.jsonl`, joined with `groups.csv` where there is one, is wanted.

    Raises:
        DataError: there is none.
    """
    rows = {row["file_name"]: row for _, row in read_objects(folder / "metadata.jsonl")}
    if (folder / "groups.csv").is_file():
        with (folder / "groups.csv").open(encoding="utf-8", newline="") as file:
            rows = {row["file_name"]: rows.get(row["file_name"], {}) | row for row in csv.DictReader(file)}
    names = [name for name, row in rows.items() if row.get("split") != "held_out" and wanted(row)]
    hashes = {sha256((folder / name).read_bytes()).hexdigest()[:12] for name in names}
    index = [place for place, digest in enumerate(faces.hashes) if digest in hashes]
    if not index:
        raise DataError(f"{folder}: no photo of the split is as wanted; see `tools.embedded.people`")
    return Faces(
        faces.images[index], faces.meshes[index], [faces.identities[place] for place in index], {}, [faces.hashes[place] for place in index]
    )


def people_seen(folder: Path | None, work: Path) -> dict[str, Any]:
    """For recipe.json: how many people and photos of which sets and licences were taught, and the files' hashes."""
    if folder is None:
        return {}
    faces = read_faces(folder, "train", work)
    return {"people": len(set(faces.identities)), "photos": len(faces.images), "sets": faces.sets, "sha256": " ".join(sorted(faces.hashes))}
