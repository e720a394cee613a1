"""The SLURM script, with srun and scontrol replaced by what one machine can do."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("place", ["checkpoint-20", "grpo/checkpoint-20"])
def test_a_requeued_job_goes_on(tmp_path, place):
    (tmp_path / "run" / place).mkdir(parents=True)
    done = run(tmp_path, 'printf "%s\\n" "$@"', "align-vlm", "--output-dir", str(tmp_path / "run"))
    assert done.stdout.split("\n")[-3:] == ["--resume-from-checkpoint", "latest", ""]


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
