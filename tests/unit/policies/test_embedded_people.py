"""The people that the embedded retoucher was taught on, and those that it must never have seen."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from policies.retoucher.backbones.tiny import EMBEDDED
from portraitkit.faces.identity import identity_embedding
from portraitkit.faces.mesh import require_mesh
from portraitkit.pictures.images import read_image
from preference_data.people.synthetic import STAGE, stage
from tools.embedded.people import Faces, draw_case, people_seen, read_faces

PORTRAITS = Path(os.environ.get("PORTRAITKIT_PORTRAITS", Path(__file__).parents[4] / "shared" / "portraits"))
SEEN = json.loads((EMBEDDED / "recipe.json").read_text())["people"]
NEAREST = 0.4
"""Two photos of one person are .2 to .45 apart by the identity net, those of two people seldom less than .5."""

needs_portraits = pytest.mark.skipif(not (PORTRAITS / "metadata.jsonl").is_file(), reason=f"needs a folder of portraits ({PORTRAITS})")


@pytest.fixture
def faces():
    images, meshes = stage()
    return Faces((images * 255).round().to(torch.uint8), meshes, ["collins", "hopper"], {"two, public domain": 2}, ["a", "b"])


def test_a_case_is_a_blemished_photo_of_one_of_the_people_and_repeats(faces):
    for seed in range(8):
        case, again = draw_case(faces, seed), draw_case(faces, seed)
        assert torch.equal(case.source, again.source)
        assert case.source.shape == (3, 128, 128)
        untouched = (case.opacity == 0).expand(3, -1, -1)
        assert torch.equal(case.source[untouched], case.clean[untouched])
        assert case.opacity.max() > 0.3


def test_faces_are_read_once_and_their_pictures_stay_in_the_work_folder(tmp_path, faces):
    torch.save(vars(faces), tmp_path / "faces-train.pt")
    read = read_faces(tmp_path / "no such folder", "train", tmp_path)
    assert read.identities == ["collins", "hopper"]
    assert people_seen(tmp_path, tmp_path) == {"people": 2, "photos": 2, "sets": {"two, public domain": 2}, "sha256": "a b"}
    assert read.images.shape == (2, 3, STAGE, STAGE)
    assert people_seen(None, tmp_path) == {}


def test_the_recipe_says_whom_the_weights_saw():
    assert SEEN["photos"] == len(SEEN["sha256"].split()) == sum(SEEN["sets"].values())
    assert SEEN["people"] > 500
    assert all("CC" in name or "MIT" in name for name in SEEN["sets"])


@needs_portraits
def test_no_photo_of_validation_or_held_out_was_taught():
    rows = [json.loads(line) for line in (PORTRAITS / "metadata.jsonl").read_text().splitlines()]
    digests = {row["file_name"]: sha256((PORTRAITS / row["file_name"]).read_bytes()).hexdigest()[:12] for row in rows}
    taught = set(SEEN["sha256"].split())
    assert taught <= {digests[row["file_name"]] for row in rows if row["split"] == "train"}
    assert not taught & {digests[row["file_name"]] for row in rows if row["split"] != "train"}


@pytest.mark.slow
@needs_portraits
def test_no_held_out_person_was_taught_by_the_identity_net():
    rows = [json.loads(line) for line in (PORTRAITS / "metadata.jsonl").read_text().splitlines()]

    def embeddings(split: str) -> torch.Tensor:
        found = []
        for row in rows:
            if row["split"] == split:
                image = read_image(PORTRAITS / row["file_name"]).pixels
                _, mesh = require_mesh(image, PORTRAITS / row["file_name"])
                found.append(identity_embedding(image[None], mesh[None, :, :2])[0])
        return torch.stack(found)

    with torch.no_grad():
        assert torch.cdist(embeddings("held_out"), embeddings("train")).min() > NEAREST
