"""Photos of a folder: who is in them, by name and by the identity net, and in which split they go. The embeddings are given."""

import json

import pytest

from portraitkit.errors import DataError
from preference_data.people.photos import folder_rows

ANNA, NEAR, GRACE, EVE = [0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [9.0, 0.0]


@pytest.fixture
def rows_of(tmp_path):
    """A function: photos as (embedding, columns) -> file name -> its row."""

    def make(*photos, shares=(0.4, 0.3, 0.3)):
        known, listed = [], []
        for number, (embedding, columns) in enumerate(photos):
            name = f"{number}.png"
            (tmp_path / name).write_bytes(b"")
            known.append({"file": name, "embedding": embedding, "error": None})
            listed.append({"file_name": name} | columns)
        for file, rows in (("faces", known), ("metadata.jsonl", listed)):
            (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {"consent": "", "licence": "", "source": "s"}
        return folder_rows(tmp_path, shares=shares, seed=0, cache=tmp_path / "faces", facts=facts)[0]

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
