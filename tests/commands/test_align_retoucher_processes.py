"""align-retoucher in two processes on the CPU: the run of one process, no sample twice, stopped and resumed, refused in another number."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from several_processes import several

SMALL = {
    "num-steps": 2,
    "segments": 1,
    "photos-per-step": 3,
    "group-size": 2,
    "updates-per-step": 2,
    "max-train-steps": 2,
    "warmup-steps": 0,
    "validation-photos": 3,
    "validation-steps": 2,
    "held-out-photos": 2,
    "checkpointing-steps": 1,
}
"""Three groups among two processes, in updates of two groups and of one: neither is divided evenly, and in one a process has nothing."""
OPTIONS = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
OPTIONS += ["--rewards", "blemish_removal", "texture", "--learning-rate", "1e-2"]
Align = Callable[..., list[int]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file and what their processes said are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def align(runs: Path) -> Iterator[Align]:
    """A function (name, processes, run folder, further options) -> exit codes; see `several_processes`."""
    with several("several_retouchers.py") as run:

        def start(name: str, processes: int, folder: str, *more: str, **job: Any) -> list[int]:
            options = [*OPTIONS, "--output-dir", str(runs / folder), *more]
            return run({"processes": processes, "log": str(runs / name), "options": options, **job})

        yield start


@pytest.fixture(scope="module")
def two(align: Align, runs: Path) -> Path:
    """A whole run in two processes."""
    assert align("two", 2, "two") == [0, 0], said(runs, "two")
    return runs / "two"


def said(runs: Path, name: str) -> str:
    """What the processes of a job wrote to the terminal."""
    return "\n".join(path.read_text() for path in sorted(runs.glob(f"{name}.[0-9]")))


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def noises(runs: Path, name: str) -> dict[int, dict[int, list[str]]]:
    """Hashes of the noise of every candidate, by training step and group."""
    found: dict[int, dict[int, list[str]]] = {}
    for path in sorted(runs.glob(f"{name}.noise.*")):
        for row in map(json.loads, path.read_text().splitlines()):
            size = SMALL["group-size"]
            groups = {group: row["noise"][place * size : (place + 1) * size] for place, group in enumerate(row["groups"])}
            assert not groups.keys() & found.get(row["step"], {}).keys(), "a group belongs to one process"
            found.setdefault(row["step"], {}).update(groups)
    return found


def assert_same(ours: Path, single: Path) -> None:
    """The figures of every step and validation are the same but for rounding.

    Rounding moves rewards by 5e-7; candidates of a group are 5e-4 apart, so advantages and gradients move by parts in a thousand.
    """
    noise = {"reward": 1e-5, "reward_std": 1e-5, "diversity": 1e-5, "loss": 1e-6, "gradient_norm": 5e-4, "texture": 1e-5}
    for kind, names in (("train", ("reward", "reward_std", "diversity", "loss", "gradient_norm")), ("validation", ("reward", "texture"))):
        assert [row["step"] for row in rows(ours, kind)] == [row["step"] for row in rows(single, kind)]
        for one, other in zip(rows(single, kind), rows(ours, kind), strict=True):
            for name in names:
                assert other[name] == pytest.approx(one[name], abs=noise[name]), (kind, one["step"], name)
    assert rows(ours, "train")[-1]["network_evaluations"] == rows(single, "train")[-1]["network_evaluations"]


def test_two_processes_train_what_one_trains(align, runs, two):
    assert align("one", 1, "one") == [0], said(runs, "one")
    assert_same(two, runs / "one")
    assert [row["step"] for row in rows(two, "train")] == [1, 2]
    assert min(row["gradient_norm"] for row in rows(two, "train")) > 5e-3
    assert max(abs(row["loss"]) for row in rows(two, "train")) > 1e-5  # the second update of a step is off-policy
    summary = json.loads((two / "summary.json").read_text())
    single = json.loads((runs / "one" / "summary.json").read_text())
    assert summary["processes"] == 2
    for name, change in single["held_out"].items():
        assert summary["held_out"][name]["after"] == pytest.approx(change["after"], rel=1e-3, abs=1e-4), name
    ids = [
        [json.loads(line)["id"] for line in (folder / "held_out" / "values.jsonl").read_text().splitlines()]
        for folder in (two, runs / "one")
    ]
    assert ids[0] == ids[1]

    drawn = noises(runs, "two")
    assert drawn == noises(runs, "one")  # the same samples, whichever process drew them
    each = [noise for groups in drawn.values() for group in groups.values() for noise in group]
    assert len(set(each)) == len(each) == 2 * 3 * SMALL["group-size"]  # and none of them twice
    assert said(runs, "two").count("report:") == 1


METHODS = {
    "dppo": {"loss": "dppo", "global_std": True},
    "neighbor": {"loss": "neighbor", "dpg": False, "neighbor_anchors": 1},
    "nft": {"loss": "nft", "dpg": False, "shared_noise": False, "anchor_weight": 0.5, "old_policy_decay": 0.5},
}


def test_each_method_trains_in_two_processes_what_it_trains_in_one(align, runs):
    sizes = {"num_steps": 3, "segments": 1, "photos_per_step": 3, "group_size": 2, "updates_per_step": 2, "rank": 4, "warmup_steps": 0}
    found = []
    for count in (1, 2):
        assert align(f"methods{count}", count, "none", methods=METHODS, sizes=sizes) == [0] * count, said(runs, f"methods{count}")
        found.append(json.loads((runs / f"methods{count}.json").read_text()))
    for name in METHODS:
        one, two = (part[name] for part in found)
        assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-5), name
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-2, abs=1e-6), name
        assert two["norm"] == pytest.approx(one["norm"], rel=2e-2) and one["norm"] > 0, name
        assert two["weight"] == pytest.approx(one["weight"], rel=0.1, abs=2e-5), name


def test_a_recipe_of_eight_gpus_runs_on_the_embedded_retoucher_in_two_processes(align, runs):
    tiny = ["--config", "dpg_kontext_8x80gb", "--backbone", "tiny", "--photos", "embedded", "--photos-per-step", "2"]
    small = ["--max-train-steps", "1", "--updates-per-step", "1", "--eval-num-steps", "2"]
    small += ["--micro-batch", "1"]  # three photos to validate: one process has two parts, the other one, and each must wait for the other
    assert align("recipe", 2, "recipe", *tiny, *small) == [0, 0], said(runs, "recipe")
    stored = json.loads((runs / "recipe" / "config.json").read_text())
    assert (stored["sharding"], stored["device"], stored["backbone"], stored["rank"]) == ("fsdp2", "cpu", "tiny", 32)


def test_stopped_in_one_process_refused_in_another_number_and_resumed(align, runs, two):
    codes = align("stopped", 2, "half", interrupt=[1, 0])
    assert codes == [130, 130], said(runs, "stopped")
    half = runs / "half"
    assert [row["step"] for row in rows(half, "train")] == [1] and (half / "checkpoint-1" / "COMPLETE").is_file()
    assert not (half / ".lock").exists()

    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    assert align("refused", 1, "half", "--resume-from-checkpoint", "latest") == [2]
    assert "checkpoint-1: was written by 2 processes, this run has 1; start 2" in said(runs, "refused")
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before

    assert align("resumed", 2, "half", "--resume-from-checkpoint", "latest") == [0, 0], said(runs, "resumed")
    for name in ("adapter", "optimizer", "best"):
        ours, whole = (load_file(folder / "checkpoint-2" / f"{name}.safetensors") for folder in (half, two))
        assert ours.keys() == whole.keys() and all(ours[key].equal(whole[key]) for key in whole), name
    assert [row["loss"] for row in rows(half, "train")] == [row["loss"] for row in rows(two, "train")]


def test_a_base_divided_by_fsdp2_trains_the_same(align, runs):
    # Two groups in two updates: in each, one process has nothing to do, and must still gather the weights with the other.
    small = ["--photos-per-step", "2", "--global-std"]  # compared over all groups, whichever processes have them
    assert align("whole", 1, "whole", *small) == [0], said(runs, "whole")
    assert align("divided", 2, "divided", *small, "--sharding", "fsdp2") == [0, 0], said(runs, "divided")
    assert_same(runs / "divided", runs / "whole")
    held = [float((runs / f"divided.held.{rank}").read_text()) for rank in range(2)]
    assert sum(held) == pytest.approx(1) and max(held) < 0.55
    ours, single = (load_file(runs / name / "pytorch_lora_weights.safetensors") for name in ("divided", "whole"))
    assert ours.keys() == single.keys() and all(ours[key].shape == single[key].shape for key in single)
    assert align("uneven", 2, "uneven", "--sharding", "fsdp2") == [2, 2]
    assert said(runs, "uneven").count("--photos-per-step 3: with --sharding fsdp2 a multiple of the 2 processes; try 4") == 1
