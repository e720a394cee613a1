"""Parquet and back, and imagefolder."""

import json
from dataclasses import replace

import pytest
from datasets import load_dataset
from PIL import Image

from portraitkit.errors import DataError
from preference_data.hub import load_parquet, save_parquet
from preference_data.pair_set import read_pairs, write_pairs

FILES = {"input": "", "a": "", "b": "", "anchor": None}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_parquet_there_and_back_keeps_every_column_and_every_byte(pair_set, tmp_path):
    pairs = read_pairs(pair_set)
    pairs[0] = replace(pairs[0], verdicts=None, overall=None, scores=None, gender="man", skin_tone="monk-3", anchor=None)
    write_pairs(pair_set, pairs)
    data = save_parquet(pair_set, tmp_path / "parquet")
    assert set(data) == {"train", "validation", "held_out"} and sum(map(len, data.values())) == len(pairs)
    row = data["train"][1]
    assert isinstance(row["a"], Image.Image) and row["a"].size == (64, 64) and row["synthetic"] is True
    assert "synthetic" in (tmp_path / "parquet" / "README.md").read_text()
    back = {pair.id: pair for pair in load_parquet(str(tmp_path / "parquet"), tmp_path / "back")}
    assert read_pairs(tmp_path / "back") == list(back.values())
    for pair in pairs:
        assert replace(back[pair.id], **FILES) == replace(pair, **FILES)
        assert (tmp_path / "back" / back[pair.id].a).read_bytes() == (pair_set / pair.a).read_bytes()
    assert back[pairs[0].id].anchor is None


def test_the_folder_itself_loads_as_an_imagefolder(pair_set):
    data = load_dataset("imagefolder", data_dir=str(pair_set), split="train")
    assert len(data) == len(read_pairs(pair_set))
    assert isinstance(data[0]["input"], Image.Image) and isinstance(data[0]["b"], Image.Image) and data[0]["overall"] in "ab"


def test_another_data_set_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    with pytest.raises(DataError, match="column 'id' is missing"):
        load_parquet(str(tmp_path / "other"), tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["other"]  # nothing half-written


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere", "empty"])
def test_no_data_set_is_one_line_and_writes_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name) as error:
        load_parquet(name, tmp_path / "back")
    assert "\n" not in str(error.value) and not (tmp_path / "back").exists()


def test_a_folder_that_cannot_be_written_is_named(pair_set, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        save_parquet(pair_set, tmp_path / "file" / "out")


def test_a_full_folder_is_refused(pair_set):
    with pytest.raises(DataError, match="not empty"):
        save_parquet(pair_set, pair_set)


def test_the_data_card_says_where_everything_comes_from(pair_set, tmp_path):
    from huggingface_hub import DatasetCard

    pairs = read_pairs(pair_set)
    record = json.loads((pair_set / "build.json").read_text())
    assert record["photos"] == "embedded" and record["versions"]["portraitkit"] and record["options"]["generators"]
    save_parquet(pair_set, tmp_path / "all")
    card = DatasetCard.load(tmp_path / "all" / "README.md")
    assert card.data.to_dict()["configs"][0]["data_files"][0]["path"] == "data/train.parquet" and "synthetic" in card.data.tags
    assert f"{len(pairs)} pairs of" in card.text and "All of them are **synthetic**" in card.text and "are not recorded" in card.text
    assert f"| versions | portraitkit {record['versions']['portraitkit']}" in card.text and "| degradations |" in card.text
    mixed = [replace(pair, synthetic=False, consent="", licence="mit", gender="woman", annotator="ann|a") for pair in pairs[:2]]
    write_pairs(pair_set, [*mixed, *(replace(pair, licence="mit", consent="release 7", gender="man") for pair in pairs[2:])])
    (pair_set / "build.json").unlink()
    save_parquet(pair_set, tmp_path / "mixed")
    card = DatasetCard.load(tmp_path / "mixed" / "README.md")
    assert card.data.license == "mit" and f"**{len(pairs) - 2} of them are synthetic**" in card.text
    assert f"| consent of the person | release 7 ({len(pairs) - 2}), not given (2) |" in card.text
    assert "**2 pairs of real photos do not say" in card.text and f"| gender | man ({len(pairs) - 2}), woman (2) |" in card.text
    assert "ann\\|a (2)" in card.text and "were not recorded" in card.text
