"""The SLURM script, with srun and scontrol replaced by what one machine can do."""

import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.training import check_sharding
from portraitkit.config import load_config
from portraitkit.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/slurm/portraitkit.sbatch"


def run(tmp_path: Path, srun: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", srun), ("scontrol", "echo localhost; echo second")):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)
    slurm = {"SLURM_JOB_NODELIST": "localhost,second", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", **environment}
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=ROOT, env={**os.environ, "PATH": path, **slurm}, capture_output=True, text=True, timeout=300
    )


def test_one_torchrun_a_node_meets_at_the_first_one(tmp_path):
    done = run(tmp_path, 'printf "%s\\n" "$@"', "align-retoucher", "--config", "dpg_kontext_8x80gb", "--output-dir", str(tmp_path / "run"))
    words = done.stdout.split("\n")
    assert done.returncode == 0 and words[1] == ".venv/bin/torchrun"
    assert words[words.index("--nnodes") + 1] == "2" and words[words.index("--rdzv_endpoint") + 1] == "localhost:29500"
    assert words[words.index(".venv/bin/align-retoucher") :] == [
        ".venv/bin/align-retoucher",
        "--config",
        "dpg_kontext_8x80gb",
        "--output-dir",
        str(tmp_path / "run"),
        "",
    ]


def again(tmp_path, *arguments, **environment):
    """What the script adds to the arguments."""
    whole = ["--output-dir", str(tmp_path / "run"), *arguments[1:]]
    done = run(tmp_path, 'printf "%s\\n" "$@"', arguments[0], *whole, **environment)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split("\n")[:-1]
    return words[words.index(whole[-1]) + 1 :]


def left(tmp_path, *files, job="7"):
    """A run folder that a job left."""
    for name in ("config.json", *files):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    (tmp_path / "run/environment.json").write_text(json.dumps({"seed": 0, "slurm_job": job, "cores": 2}, indent=2))


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("align-retoucher", "checkpoint-20/COMPLETE"),
        ("align-vlm", "checkpoint-20/trainer_state.json"),
        ("align-vlm", "sft/checkpoint-20/trainer_state.json"),
        ("align-vlm", "sft/model/config.json"),
        ("train-reward-model", "sft/stage.json"),
    ],
)
def test_a_job_submitted_again_goes_on(tmp_path, command, file):
    left(tmp_path, file, job="6")
    assert again(tmp_path, command) == ["--resume-from-checkpoint", "latest"]


def test_a_job_requeued_before_its_first_whole_checkpoint_starts_anew_in_its_own_folder(tmp_path):
    left(tmp_path, "checkpoint-20/model.safetensors", ".checkpoint-20.77/COMPLETE")
    assert again(tmp_path, "align-vlm", SLURM_RESTART_COUNT="1") == ["--overwrite"]
    assert again(tmp_path, "align-vlm") == [], "submitted by hand: the user decides"
    left(tmp_path, job="6")
    assert again(tmp_path, "align-vlm", SLURM_RESTART_COUNT="1") == [], "another job's run"


@pytest.mark.parametrize("arguments", [("make-preferences", "build"), ("train-reward-model", "--evaluate")])
def test_a_command_that_goes_on_by_itself_is_given_no_option(tmp_path, arguments):
    left(tmp_path, "shards/options.json")
    assert again(tmp_path, *arguments, SLURM_RESTART_COUNT="1") == []


def test_a_run_folder_says_which_job_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    RunFolder.open(tmp_path / "run", {}, command=["align-vlm"], seed=0).close()
    assert again(tmp_path, "align-vlm", SLURM_RESTART_COUNT="1") == ["--overwrite"]


def examples():
    """The commands on several processes in the script's head and the pages, with the processes that each is started in."""
    for path in (SCRIPT, *sorted((ROOT / "docs").glob("*.md"))):
        for line in path.read_text().splitlines():
            nodes, each = (
                re.search(pattern, line) for pattern in (r"--n?nodes (\d+)", r"--nproc[_-]per[_-]node (\d+)|--num_processes (\d+)")
            )
            told = re.search(r"align-retoucher (--config \w+.*)", line)
            if told and (nodes or each) and "--config ..." not in line:
                words = shlex.split(told[1].split("#")[0].replace("...", ""))
                count = int(nodes[1] if nodes else 1) * int((each[1] or each[2]) if each else 8)
                yield pytest.param(words, count, id=f"{path.name}: {' '.join(words[:2])} in {count}")


@pytest.mark.parametrize(("words", "processes"), list(examples()))
def test_examples_on_several_processes_divide(words, processes):
    config = load_config(RetoucherConfig, words, prog="align-retoucher")
    check_sharding(config, processes)
    assert config.photos_per_step >= processes, "no process is idle"


def test_the_run_folder_must_be_given(tmp_path):
    done = run(tmp_path, "true", "align-vlm", "--config", "vlm_area_7b")
    assert done.returncode == 2 and done.stderr.startswith("error: give --output-dir")


def test_the_exit_code_is_the_command_s(tmp_path):
    assert run(tmp_path, "exit 3", "align-vlm", "--output-dir", str(tmp_path / "run")).returncode == 3


@pytest.mark.slow
def test_two_processes_of_one_node_train(tmp_path):
    options = ["--max-train-steps", "1", "--num-steps", "3", "--photos-per-step", "2", "--group-size", "2"]
    options += ["--validation-photos", "2", "--held-out-photos", "2"]
    done = run(
        tmp_path,
        'shift; exec "$@"',
        "align-retoucher",
        *options,
        "--output-dir",
        str(tmp_path / "run"),
        SLURM_JOB_NUM_NODES="1",
        GPUS_PER_NODE="2",
        PORT="29655",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "summary.json").is_file()
