"""Anchors without retouches: blemishes painted onto clean portraits, and the policy's own best rollouts."""

import copy
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from policies.retoucher import rank_groups
from policies.retoucher.photos import FolderSource, open_photos, read_photos
from policies.retoucher.rank_groups import BestOfN
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.files.jsonl import read_objects
from portraitkit.pictures.images import write_image
from portraitkit.runs.checkpoint import load_checkpoint, save_checkpoint
from preference_data.people.synthetic import make_person
from reward_models.verifiable import blemish_residual

ROOT = Path(__file__).parents[3]
PORTRAITS = Path(os.environ.get("PORTRAITKIT_PORTRAITS", ROOT.parent / "shared" / "portraits"))


def open_painted(folder: Path, splits: dict[str, str]) -> FolderSource:
    """The folder's photos, file name -> split, each of another person."""
    rows = [{"file_name": name, "split": split, "identity": name} for name, split in splits.items()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_photos(read_photos(str(folder), "none", Console(quiet=True)), 128, "painted")
    assert isinstance(source, FolderSource)
    return source


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    morphs = [make_person("train", torch.Generator().manual_seed(seed), size=192).clean for seed in (1, 2)]
    for name, pixels in zip("abcd", [*bundled_portraits().values(), *morphs], strict=True):
        write_image(folder / f"{name}.png", pixels)
    return open_painted(folder, {"a.png": "train", "c.png": "train", "b.png": "validation", "d.png": "held_out"})


def check_paint(batch):
    """The anchor is the photo, the mask says where it was painted on, and rewards know both."""
    photos = batch.photos
    assert torch.equal(batch.anchors, photos.clean) and (photos.opacity.amax((1, 2, 3)) > 0.3).all()
    changed = (photos.source - photos.clean).abs().amax(1, keepdim=True) > 0
    assert changed.any() and not (changed & (photos.opacity == 0)).any()
    assert blemish_residual(photos.source, photos).tolist() == pytest.approx([1.0] * len(photos), abs=1e-4)
    assert blemish_residual(photos.clean, photos).max() < 1e-4


def test_training_paints_anew_and_evaluations_always_the_same(painted):
    first, again, later = (painted.load("train", indices) for indices in ([0, 1], [0, 1], [2, 3]))
    assert first.ids == later.ids and set(first.ids) == {"a.png", "c.png"} and torch.equal(first.photos.source, again.photos.source)
    assert torch.equal(first.anchors, later.anchors) and not torch.equal(first.photos.opacity, later.photos.opacity)
    for split in ("validation", "held_out"):
        one, two = painted.load(split, [0]), painted.load(split, [0])
        assert torch.equal(one.photos.source, two.photos.source)
        check_paint(one)
    check_paint(first)
    check_paint(later)


def best_of(trainer, folder, say=lambda line: None):
    return BestOfN(trainer.source, trainer.backbone, trainer.rewards, folder, trainer.config, say)


@pytest.fixture
def small(config, make_trainer):
    return lambda **changes: make_trainer(config, best_of=3, best_of_steps=2, **changes)


def test_the_best_rollout_is_the_anchor_until_its_time_is_over(small, tmp_path, monkeypatch):
    trainer, said = small(), []
    source = best_of(trainer, tmp_path / "anchors", said.append)
    batch = source.load("train", [0, 1])
    assert batch.evaluations == 2 * 3 * 4 and batch.anchors.shape == (2, 3, 128, 128) and source.load("validation", [0]).evaluations == 0
    real = rank_groups.sample_ode
    monkeypatch.setattr(rank_groups, "sample_ode", None)  # steps 0 and 1 take what is there, in a resumed run too
    kept = best_of(trainer, tmp_path / "anchors").load("train", [0, 1])
    assert torch.equal(kept.anchors, batch.anchors) and kept.evaluations == 0

    photo = trainer.source.load("train", [4])
    retouches = torch.cat([photo.photos.source, photo.anchors, photo.photos.source * 0.5])
    monkeypatch.setattr(rank_groups, "sample_ode", lambda *given: retouches)
    assert (source.load("train", [4]).anchors - photo.anchors).abs().max() <= 0.5 / 255 + 1e-6
    said.clear()
    monkeypatch.setattr(rank_groups, "sample_ode", lambda *given: torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    source.load("train", [6])
    assert len(said) == 1 and said[0].startswith("step 3: synthetic-train-6: the best of 3 retouches is worth")
    *_, (_, good), (_, bad) = read_objects(tmp_path / "anchors" / "anchors.jsonl")
    assert (
        good["reward"] > good["untouched"] and bad["reward"] < bad["untouched"] and (bad["photo"], bad["step"]) == ("synthetic-train-6", 3)
    )

    monkeypatch.setattr(rank_groups, "sample_ode", real)
    same = copy.copy(trainer.source)
    same.load = lambda split, indices: photo  # that of step 2, in the next period
    assert replace(source, source=same).load("train", [8]).evaluations == 3 * 4


def test_a_resumed_run_has_the_same_anchors(small, tmp_path):
    """Even those of a step that the run was stopped after, and that it makes or finds again."""
    few = {"num_steps": 2, "segments": 1, "group_size": 2}

    def trainer(folder):
        made = small(**few)
        made.source = best_of(made, folder)
        return made

    whole, first, second = (trainer(tmp_path / name) for name in ("whole", "parts", "parts"))
    for _ in range(3):
        whole.train_step()
    first.train_step()
    save_checkpoint(tmp_path, first.progress.step, first.tensors(), first.state(), limit=None)
    first.train_step()
    checkpoint = load_checkpoint(tmp_path, "latest")
    second.restore(checkpoint.tensors, checkpoint.state)
    for _ in range(2):
        second.train_step()
    for name, value in whole.adapter.items():
        assert torch.equal(value, second.adapter[name]), name
    plain = small(**few)
    for _ in range(3):
        plain.train_step()
    assert any(not torch.equal(value, plain.adapter[name]) for name, value in whole.adapter.items())
    assert whole.progress.evaluations == plain.progress.evaluations + 3 * 2 * 3 * 2


@pytest.mark.skipif(not (PORTRAITS / "metadata.jsonl").is_file(), reason="no portraits of real people at PORTRAITKIT_PORTRAITS")
def test_blemishes_are_painted_onto_real_people(tmp_path):
    """Four training people; nobody that the set holds out is looked at."""
    listed = [row for _, row in read_objects(PORTRAITS / "metadata.jsonl") if row["split"] == "train"][:400:100]
    for row in listed:
        shutil.copy(PORTRAITS / row["file_name"], tmp_path)
    names = [Path(row["file_name"]).name for row in listed]
    source = open_painted(tmp_path, dict(zip(names, ("train", "train", "validation", "held_out"), strict=True)))
    batch = source.load("train", [0, 1])
    check_paint(batch)
    noise = (batch.photos.source - batch.photos.clean).square().mean((1, 2, 3))
    assert ((-10 * noise.log10() > 25) & (-10 * noise.log10() < 50)).all()
