"""Checkpoints come back to the bit, or are refused; a kill at any moment leaves one to go on from."""

import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from portraitkit.errors import CheckpointError
from portraitkit.runs import checkpoint as checkpoints
from portraitkit.runs.checkpoint import flatten_optimizer, load_checkpoint, restore_optimizer, save_checkpoint

STATE = {"step": 7, "rewards": [0.1, 1e-300, float("nan")], "names": {"ä": None, "on": True}}


def save(folder, step, *, limit=None, value=None):
    return save_checkpoint(folder, step, {"model": {"weight": torch.full((3,), float(step if value is None else value))}}, {}, limit=limit)


def value_of(checkpoint):
    return checkpoint.tensors["model"]["weight"].tolist()[0]


def steps(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def test_tensors_and_state_come_back_to_the_bit(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    model = {
        "odd": odd,
        "half": torch.randn(4, 3).bfloat16(),
        "view": torch.arange(12.0).view(3, 4).T,
        "number": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "learnt": torch.ones(2, requires_grad=True),
    }
    tied = torch.arange(4.0)
    written = save_checkpoint(tmp_path, 7, {"model": model, "other": {"one": tied, "same": tied}}, STATE, limit=None)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.step, checkpoint.path, written) == (7, tmp_path / "checkpoint-7", tmp_path / "checkpoint-7")
    assert repr(checkpoint.state) == repr(STATE)
    assert checkpoint.tensors.keys() == {"model", "other"} and checkpoint.tensors["model"].keys() == model.keys()
    assert torch.equal(checkpoint.tensors["model"].pop("odd").view(torch.int32), model.pop("odd").view(torch.int32))
    for name, tensor in model.items():
        back = checkpoint.tensors["model"][name]
        assert back.dtype == tensor.dtype and torch.equal(back, tensor.detach())
    assert torch.equal(checkpoint.tensors["other"]["same"], tied)


def test_random_numbers_go_on_where_they_were(tmp_path):
    def seed_all(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def draw():
        return [random.gauss(0, 1), np.random.standard_normal(), *torch.randn(2).tolist(), random.random(), np.random.randint(1 << 30)]

    for seed in (1, 2):  # a normal number may be kept back by the generators: at one seed it is, at the other not
        seed_all(seed)
        if seed == 2:
            draw()
        save(tmp_path, seed)
        expected = draw()
        seed_all(99)
        load_checkpoint(tmp_path)
        assert draw() == expected


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
def test_a_restored_optimiser_takes_the_same_steps(tmp_path, optimiser):
    def setup():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, optimiser(model.parameters(), lr=0.1)

    def train(model, opt, seeds):
        for seed in seeds:
            opt.zero_grad()
            model(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
            opt.step()

    straight, opt = setup()
    train(straight, opt, range(5))
    first, opt = setup()
    train(first, opt, range(3))
    save_checkpoint(tmp_path, 3, {"model": first.state_dict(), "optimizer": flatten_optimizer(opt)}, {}, limit=None)
    second, opt = setup()
    checkpoint = load_checkpoint(tmp_path)
    second.load_state_dict(checkpoint.tensors["model"])
    restore_optimizer(opt, checkpoint.tensors["optimizer"])
    train(second, opt, range(3, 5))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)
    with pytest.raises(CheckpointError, match="of another model"):
        restore_optimizer(torch.optim.AdamW([torch.zeros(1, requires_grad=True)]), checkpoint.tensors["optimizer"])


def test_latest_is_the_highest_complete_step(tmp_path):
    for step in (2, 10, 9):
        save(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()  # never finished
    shutil.copytree(tmp_path / "checkpoint-9", tmp_path / "checkpoint-9 (copy)")
    checkpoint = load_checkpoint(tmp_path, "latest")
    assert (checkpoint.step, value_of(checkpoint)) == (10, 10)
    assert "checkpoint-10" in checkpoint.note and "checkpoint-11" in checkpoint.note
    asked = load_checkpoint(tmp_path, str(tmp_path / "checkpoint-9 (copy)"))
    assert value_of(asked) == 9 and "as asked" in asked.note


@pytest.mark.parametrize("which", ["latest", "{}/checkpoint-5", "{}/checkpoint-6"])
def test_nothing_to_load_is_said(tmp_path, which):
    save(tmp_path, 5)
    (tmp_path / "checkpoint-5" / "COMPLETE").unlink()
    message = {"latest": "no complete checkpoint", "{}/checkpoint-5": "not written to the end", "{}/checkpoint-6": "no such"}[which]
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, which.format(tmp_path))


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "rng.safetensors", "state.json", "COMPLETE"])
def test_a_damaged_checkpoint_is_never_loaded(tmp_path, name, damage):
    file = save(tmp_path, 5) / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[len(data) // 2] ^= 0x80
        file.write_bytes({"flipped": data, "cut": file.read_bytes()[:-1], "emptied": b""}[damage])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, str(tmp_path / "checkpoint-5"))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_was_slipped_in_is_not_loaded(tmp_path):
    folder = save(tmp_path, 5)
    shutil.copy(folder / "model.safetensors", folder / "stray.safetensors")
    assert load_checkpoint(tmp_path).tensors.keys() == {"model"}


@pytest.mark.parametrize(("limit", "kept"), [(None, [1, 2, 3, 10]), (2, [3, 10]), (1, [10]), (0, [10]), (9, [1, 2, 3, 10])])
def test_only_the_newest_are_kept(tmp_path, limit, kept):
    (tmp_path / "checkpoint-0").mkdir()  # incomplete: nobody's business
    for step in (1, 2, 3, 10):
        save(tmp_path, step, limit=limit)
    assert steps(tmp_path) == [0, *kept]


def test_the_one_just_written_stays_although_a_later_step_lies_there(tmp_path):
    """A run resumed from an earlier checkpoint than the last."""
    save(tmp_path, 10)
    save(tmp_path, 40)
    assert save(tmp_path, 20, limit=1).is_dir()
    assert steps(tmp_path) == [20]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 5, value=1.0)
    stray = tmp_path / "checkpoint-5" / "stray"
    stray.touch()
    save(tmp_path, 5, value=2.0)
    assert value_of(load_checkpoint(tmp_path)) == 2.0
    assert not stray.exists() and [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test may take it."""


def kill_at(monkeypatch, moment):
    """Die at the given call of anything that touches the disk, with the call done by half where it has halves.

    Returns:
        A list that will hold the name of that call.
    """
    left, died = [moment], []

    def dying(function, half=None):
        def call(*args, **keywords):
            left[0] -= 1
            if left[0] == 0:
                if half is not None:
                    half(*args)
                died.append(function.__name__)
                raise Killed
            return function(*args, **keywords)

        return call

    def cut(tensors, path):
        Path(path).write_bytes(b"half")

    def remove_some(path, **_):
        for file in list(Path(path).glob("*"))[:1] + [Path(path) / "state.json"]:
            if file.name != "COMPLETE":
                file.unlink(missing_ok=True)

    monkeypatch.setattr(checkpoints, "save_file", dying(checkpoints.save_file, cut))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", dying(shutil.rmtree, remove_some))
    monkeypatch.setattr(checkpoints.os, "fsync", dying(checkpoints.os.fsync))
    for name in ("mkdir", "write_text", "rename"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    return died


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("step", [2, 3])
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch, step, limit):
    """Step 2 replaces the checkpoint of the same step; step 3 comes after it."""
    moment, done = 0, False
    while not done:
        moment += 1
        folder = tmp_path / str(moment)
        save(folder, 1)
        save(folder, 2)
        with monkeypatch.context() as patch:
            died = kill_at(patch, moment)
            try:
                save(folder, step, limit=limit, value=9.0)
                done = True
            except Killed:
                done = False
        checkpoint = load_checkpoint(folder)
        between_two_renames = {(1, 1.0)} if died == ["rename"] and step == 2 else set()
        assert (checkpoint.step, value_of(checkpoint)) in {(2, 2.0), (step, 9.0)} | between_two_renames
        save(folder, 4, limit=1)
        assert [path.name for path in folder.iterdir()] == ["checkpoint-4"], "what the killed save left takes space for ever"
    assert moment > 10, "the kills did not take"


def test_a_full_disk_is_said_and_harms_nothing(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-2: could not be written .*too large.*1\.0 MiB"):
            save_checkpoint(tmp_path, 2, {"model": {"weight": torch.zeros(2**18)}}, {}, limit=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert load_checkpoint(tmp_path).step == 1


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Not a directory"):
        save(tmp_path / "file", 1)
