"""Real people for the embedded models: the faces of a folder of portraits, photographed anew for every case.

Nothing of a picture is kept but in the work folder; what the weights saw is told by `Faces.sets` and `Faces.hashes`.
"""

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from portraitkit.errors import UserError
from portraitkit.faces.regions import region_masks
from preference_data.people import synthetic
from preference_data.people.photos import folder_rows, open_photo

AS_THEY_ARE, RESHAPED = 0.6, 0.25
"""Shares of the cases that show a person as photographed, and with another face shape and skin tone; the rest are morphs of two people."""
SPOTS = (3, 14)


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
        rows, _ = folder_rows(folder, shares=(0.8, 0.1, 0.1), seed=0, cache=work / "faces.jsonl", facts={"source": folder.name})
        images, meshes, identities, hashes, sets = [], [], [], [], Counter()
        for row in rows:
            if row.split != split or row.file is None:
                continue
            try:
                photo = open_photo(row.file, None, synthetic.STAGE)
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
    first = int(torch.randint(len(faces.images), (1,), generator=generator))
    draw = float(torch.rand(1, generator=generator))
    if draw < AS_THEY_ARE:
        landmarks = faces.meshes[first]
        skin = region_masks(landmarks, synthetic.STAGE, synthetic.STAGE, only=("skin",))["skin"]
        changed = draw < AS_THEY_ARE / 2
        person = synthetic.photograph(faces.images[first].float() / 255, landmarks, skin, generator, size=size, changed=changed)
    else:
        other = first if draw < AS_THEY_ARE + RESHAPED else int(torch.randint(len(faces.images), (1,), generator=generator))
        pair = [first, other]
        person = synthetic.make_person("train", generator, size=size, faces=(faces.images[pair].float() / 255, faces.meshes[pair]))
    return synthetic.blemished(person, generator, SPOTS)


def people_seen(folder: Path | None, work: Path) -> dict[str, Any]:
    """For recipe.json: how many people and photos of which sets and licences were taught, and the files' hashes."""
    if folder is None:
        return {}
    faces = read_faces(folder, "train", work)
    return {"people": len(set(faces.identities)), "photos": len(faces.images), "sets": faces.sets, "sha256": " ".join(sorted(faces.hashes))}
