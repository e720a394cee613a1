"""Photos of a folder: who is in them, by name and by the identity net, and in which split they go; each is looked at once."""

import json

import pytest
import torch

from portraitkit.errors import DataError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image
from portraitkit.runs.shards import Growing
from preference_data.people import photos
from preference_data.people.photos import PhotoFace, folder_rows, open_photo

ANNA, NEAR, GRACE, EVE = [0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [9.0, 0.0]


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    """A function: photos as (embedding, columns) -> their rows."""
    faces = {}
    monkeypatch.setattr(photos, "find_face", lambda pixels, path: PhotoFace((4, 4), torch.zeros(468, 3), torch.tensor(faces[path.name])))

    def make(*given, shares=(0.4, 0.3, 0.3)):
        for number, (embedding, _) in enumerate(given):
            faces[f"{number}.png"] = embedding
            write_image(tmp_path / f"{number}.png", torch.zeros(3, 4, 4))
        listed = [{"file_name": f"{number}.png"} | columns for number, (_, columns) in enumerate(given)]
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
        return folder_rows(tmp_path, shares=shares)[0]

    return make


def test_a_photo_without_a_name_is_who_the_net_says(rows_of):
    rows = rows_of((ANNA, {"identity": "anna"}), (ANNA, {}), (GRACE, {}), (EVE, {}), (EVE, {}))
    names = [row.identity for row in rows]
    assert names[:2] == ["anna", "anna"] and names[2].startswith("person-") and names[3] == names[4] != names[2]
    assert rows[0].split == rows[1].split and rows[3].split == rows[4].split
    assert {row.split for row in rows} == {"train", "validation", "held_out"}


def test_two_names_for_one_face_are_kept_and_never_parted(rows_of):
    others = [([20.0 + 3 * number, 0.0], {}) for number in range(12)]
    rows = rows_of((ANNA, {"identity": "anna"}), (NEAR, {"identity": "ann"}), (NEAR, {}), (GRACE, {"identity": "ann"}), *others)
    assert [row.identity for row in rows[:4]] == ["anna", "ann", "ann", "ann"]
    assert len({row.split for row in rows[:4]}) == 1 and len({row.split for row in rows}) == 3
    given = rows_of((ANNA, {"identity": "anna", "split": "held_out"}), (NEAR, {"identity": "ann"}), *others, shares=(1.0, 0.0, 0.0))
    assert [row.split for row in given[:2]] == ["held_out", "held_out"] and given[-1].split == "train"


def test_splits_that_are_given_are_kept(rows_of):
    rows = rows_of((ANNA, {"identity": "anna", "split": "train"}), (NEAR, {"identity": "twin", "split": "held_out"}))
    assert [row.split for row in rows] == ["train", "held_out"]  # the user says both: two people, two splits; lint lists them
    with pytest.raises(DataError, match="one split a person"):
        rows_of((ANNA, {"identity": "anna", "split": "train"}), (NEAR, {"split": "held_out"}))


def test_faces_are_looked_for_once(tmp_path, monkeypatch):
    """What is kept is what was found, to the bit; a photo that has changed is looked at again."""
    portraits, folder, seen, look = bundled_portraits(), tmp_path / "photos", [], photos._look
    folder.mkdir()
    write_image(folder / "anna.png", portraits["astronaut"])
    write_image(folder / "anna-retouched.png", portraits["astronaut"] * 0.98)
    write_image(folder / "grey.png", torch.full((3, 64, 64), 0.5))
    listed = [{"file_name": "anna.png", "anchor_file_name": "anna-retouched.png"}, {"file_name": "grey.png"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    monkeypatch.setattr(photos, "_look", lambda photo, anchor: seen.append(photo.name) or look(photo, anchor))

    def run():
        return folder_rows(folder, cache=Growing(tmp_path / "faces.jsonl"), shares=(1.0, 0.0, 0.0))

    (row,), rejected = run()
    (again,), rejected_again = run()
    assert seen == ["anna.png", "grey.png"] and [bad.line for bad in rejected] == [2] and rejected_again == rejected
    once, anew = open_photo(again.file, again.anchor, 64, again.face), open_photo(row.file, row.anchor, 64)
    assert torch.equal(once.pixels, anew.pixels) and torch.equal(once.anchor, anew.anchor) and torch.equal(once.mesh, anew.mesh)
    write_image(folder / "anna-retouched.png", portraits["grace_hopper"])
    with pytest.raises(DataError, match=r"no photo can be used \(2 were refused\); the first: anchor .* aspect ratio"):
        run()
    assert seen == ["anna.png", "grey.png", "anna.png"]
