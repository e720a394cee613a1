"""Exact resume, shown: every command that goes on is killed by SIGKILL again and again, and must end as if it never had been.

    .venv/bin/python -m tools.soak --runs 10 --seed 0

Each command makes one tiny run to its end. Then come the runs that are killed, one to three times each, by turns after a random time and at
a random change of the run's folder (a file opened to be written, renamed, removed): the processes' whole group at once. They go on as
the command's own message says. In the end every file must equal that of the uninterrupted run byte for byte, as must each checkpoint at the
moment at which the run itself removes it; JSON without `TIMES`. The table goes to OUTPUT/table.md; a run that differs stays.

With `--signal int` it is Ctrl-C instead, once, to the whole group: the process must end by itself with 130 and one line, or be done, and
leave no temporary file; then it goes on, and the files are compared as ever.

The processes are forks of this one, which has imported what they need.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portraitkit.files.atomic import UNFINISHED

ROOT = Path(__file__).parents[1]
TIMES = {"time", "started", "seconds", "seconds_total", "samples_per_second", "steps_per_second"}
TIMES |= {"step_time", "cpu_seconds", "resume_from_checkpoint", "overwrite", "command", "should_training_stop"}
"""Keys of JSON files that say when and how long, and how a run was started and stopped: not compared."""
LEFT_OUT = {"COMPLETE", ".lock", ".writing", "environment.json", "report.html", "README.md"}
"""Files not compared: they name the machine and the time, or are written from those that are compared."""
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree"}
SENT = {"kill": signal.SIGKILL, "int": signal.SIGINT}
LONGEST = 1800.0  # Seconds that one process may take

VLM = (
    "--device cpu --dtype float32 --prompts-per-step 2 --group-size 4 --max-train-steps 4 --checkpointing-steps 1 --validation-steps 2 "
    "--learning-rate 1e-3 --sft-batch 2 --sft-steps 3"
)
MAKE = """import sys
sys.path.insert(0, "tests")
from pathlib import Path
from preference_data.commands.build import build_pairs
from preference_data.commands.options import BuildConfig
from tiny_judge import write_tiny_judge
from tiny_vlm import write_tiny_vlm
write_tiny_vlm(Path(sys.argv[1]) / "model")
write_tiny_judge(Path(sys.argv[1]) / "judge")
build_pairs(BuildConfig.of(photos="embedded", count=6, resolution=64, output_dir=Path(sys.argv[1]) / "pairs"))
"""
"""A model with random weights, a judge that has learnt the form of its answers alone, and a pair set."""
REWARD = "def score(solution_str, **_):\n    return len(set(solution_str)) / 10\n"
"""Something that the random answers of a model with random weights differ in."""


@dataclass(frozen=True)
class Case:
    """A command, how it is started, and how it goes on. PLACE in the options stands for the soak's folder."""

    name: str
    module: str
    entry: str
    options: str
    go_on: tuple[str, ...] = ("--resume-from-checkpoint", "latest")


CASES = [
    Case(
        "align-retoucher",
        "policies.retoucher.main",
        "align_retoucher",
        "--photos-per-step 1 --group-size 2 --max-train-steps 4 --validation-photos 1 --held-out-photos 2 --warmup-steps 0 --num-steps 2 "
        "--segments 1 --validation-steps 2 --checkpointing-steps 1 --ema-decay 0.5",
    ),
    Case(
        "align-vlm",
        "policies.vlm.main",
        "align_vlm",
        f"--model PLACE/model --reward-file PLACE/reward.py:score {VLM} --max-tokens 8 --stages sft grpo --train-rows 8 "
        "--validation-rows 2 --held-out-rows 3 --probe-rows 2 --samples 2",
    ),
    Case(
        "train-reward-model",
        "reward_models.main",
        "train_reward_model",
        f"--model PLACE/judge {VLM} --max-tokens 40 --train-pairs 8 --sft-pairs 2 --reject-pairs 2 --reject-samples 2 --reject-steps 2 "
        "--validation-pairs 2 --held-out-pairs 3 --hack-cases 1 --stability-pairs 0",
    ),
    Case(
        "benchmark-portraits",
        "benchmarks.main",
        "benchmark_portraits",
        "--limit 4 --metrics brisque psnr identity_cosine reward --cache cache",
        go_on=(),
    ),
    Case(
        "make-preferences build",
        "preference_data.main",
        "make_preferences",
        "embedded --count 8 --resolution 64 --pairs-per-photo 2 --split-shares 0.5 0.25 0.25",
        go_on=(),
    ),
    Case("make-preferences makeup", "preference_data.main", "make_preferences", "embedded --count 6 --size 64", go_on=()),
    Case("make-preferences export", "preference_data.main", "make_preferences", "PLACE/pairs", go_on=()),
]


@dataclass
class Ended:
    """How a process ended."""

    code: int | None  # None: killed by us; 130 after Ctrl-C
    said: str
    seconds: float
    changes: int  # of the folder, that it made


def attempt(case: Case, more: list[str], place: Path, moment: tuple[str, float] | None, sent: signal.Signals = signal.SIGKILL) -> Ended:
    """Run a command in a fork until it ends, or until the moment: ("time", seconds) or ("change", number of changes of the folder).

    It works in `place`: `run` is the run's folder, and what it says, changes, imports and removes is noted beside that.
    """
    place.mkdir(exist_ok=True)
    for name in ("said", "changes"):
        (place / name).write_bytes(b"")
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(place)
            for number, name, how in ((0, os.devnull, os.O_RDONLY), (1, "said", os.O_WRONLY), (2, "said", os.O_WRONLY | os.O_APPEND)):
                os.dup2(os.open(name, how), number)
            watch(place, int(moment[1]) if moment is not None and moment[0] == "change" else None, sent)
            options = case.options.replace("PLACE", str(place.parents[1])).split()
            sys.argv = [*case.name.split(), *options, "--output-dir", "run", *more]
            getattr(importlib.import_module(case.module), case.entry)()
        except SystemExit as ended:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is the tool's own
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            (place / "modules").write_text("\n".join(sys.modules))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    limit = started + (moment[1] if moment is not None and moment[0] == "time" else LONGEST)
    limit += 0.1 * (sent == signal.SIGINT)  # by then the fork is at the command itself
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() >= limit:
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(child, sent if limit < started + LONGEST else signal.SIGKILL)
                limit = started + LONGEST
        time.sleep(0.002)
    killed = os.WIFSIGNALED(done[1]) and os.WTERMSIG(done[1]) == signal.SIGKILL
    code = None if killed else os.waitstatus_to_exitcode(done[1])
    return Ended(code, (place / "said").read_text(errors="replace"), time.monotonic() - started, (place / "changes").stat().st_size)


def watch(place: Path, last: int | None, sent: signal.Signals) -> None:
    """In the child: count the changes of the folder, get the signal at one of them, and note the checkpoints that the run removes."""
    root, count, busy = str(place / "run"), 0, False
    tally = os.open(place / "changes", os.O_WRONLY | os.O_APPEND)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count, busy
        if busy or (event != "open" and event not in CHANGES) or not given:
            return
        if event == "open" and not (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        name = os.path.abspath(os.fsdecode(given[0])) if isinstance(given[0], str | bytes | os.PathLike) else ""
        inside = name.startswith(root) or (event in ("os.remove", "os.rmdir") and given[-1] not in (-1, None))  # rmtree's own
        if not inside:
            return
        busy = True
        try:
            if event == "shutil.rmtree" and re.fullmatch(r"\.?checkpoint-\d+(\.old)?", Path(name).name):
                with (place / "removed").open("a", encoding="utf-8") as file:
                    file.writelines(
                        json.dumps([f"{name[len(root) + 1 :]}/{key}", value]) + "\n" for key, value in digests(Path(name)).items()
                    )
            os.write(tally, b".")
            count += 1
            if count == last:
                os.killpg(0, sent)
        finally:
            busy = False

    sys.addaudithook(hook)


def digests(folder: Path) -> dict[str, str]:
    """What is compared of each file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in LEFT_OUT:
            data = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
                data = json.dumps([timeless(json.loads(line)) for line in lines]).encode()
            elif path.suffix == ".safetensors":  # its metadata come in any order
                end = 8 + int.from_bytes(data[:8], "little")
                data = json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def timeless(value: Any) -> Any:
    """JSON without the keys that are times."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def finish(case: Case, place: Path, moments: list[tuple[str, float]], tally: Counter[str], sent: signal.Signals) -> str:
    """Start a run, send it the signal at the moments and let it go on as it says, until it has ended; what went wrong, or nothing."""
    more: list[str] = []
    for _ in range(3 * len(moments) + 10):
        ended = attempt(case, more, place, moments[0] if moments else None, sent)
        if ended.code == 0:
            return ""
        if ended.code == 130 and sent == signal.SIGINT:
            halves = [path.name for path in (place / "run").rglob(".*") if UNFINISHED.fullmatch(path.name)]
            if "Traceback" in ended.said or halves:
                return f"interrupted it left {halves} and said {ended.said[-1500:]}"
        if ended.code is None or (ended.code == 130 and moments):
            if not moments or ended.seconds >= LONGEST:
                return f"did not end in {LONGEST:.0f} s"
            moments, more = moments[1:], list(case.go_on)
            tally["kills"] += 1
        elif ended.code == 2 and "leave --resume-from-checkpoint out to start one" in ended.said:
            more = []
            tally["anew"] += 1
        elif ended.code == 2 and "use --overwrite" in ended.said and "--overwrite" not in more:
            more = ["--overwrite"]
            tally["anew"] += 1
        else:
            return f"ended with {ended.code}: {ended.said[-1500:]}"
    return "never ended"


def differences(whole: dict[str, str], found: dict[str, str]) -> list[str]:
    """The files of which one is missing, too many or another."""
    return sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))


def removed(place: Path) -> list[tuple[str, str]]:
    """Names and digests in the checkpoints that a run has removed."""
    return [tuple(json.loads(line)) for line in (place / "removed").read_text().splitlines()] if (place / "removed").exists() else []


def soak(case: Case, place: Path, runs: int, seed: int, sent: signal.Signals) -> str:
    """Two runs to their end, then those that are killed; prints what differs, and returns a row of the table."""
    rng, tally = random.Random(f"{seed} {case.name}"), Counter[str]()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in ("cold", "whole"):  # with what the first one has imported, the others start at once
        first = attempt(case, [], place / name, None)
        if first.code != 0:
            raise SystemExit(f"{case.name} does not run: {first.said[-3000:]}")
        for module in (place / name / "modules").read_text().splitlines():
            with contextlib.suppress(ImportError, ValueError):
                importlib.import_module(module)
    whole, gone = digests(place / "whole" / "run"), dict(removed(place / "whole"))
    if bad := differences(digests(place / "cold" / "run"), whole):
        raise SystemExit(f"{case.name}: two runs that nobody stopped differ in {', '.join(bad[:8])}")
    print(
        f"{case.name}: {first.seconds:.1f} s, {first.changes} changes, {len(whole)} files, {len(gone)} of removed checkpoints", flush=True
    )
    for number in range(runs):
        run, last = place / f"{number}", ("time", "change")[number % 2]
        most = first.seconds if last == "time" else first.changes
        moments = [(last, rng.uniform(0, most) if last == "time" else rng.randint(1, most)) for _ in range(rng.randint(1, 3))]
        wrong = finish(case, run, moments, tally, sent)
        found, lost = ({}, []) if wrong else (digests(run / "run"), removed(run))
        bad = differences(whole, found) + sorted(name for name, digest in lost if gone.get(name, digest) != digest)
        tally["files"] += len(found) + sum(name in gone for name, _ in lost)
        if wrong or bad:
            tally["differ"] += 1
            told = ", ".join(f"{kind} {at:.4g}" for kind, at in moments)
            print(f"  {run}, killed at {told}: {wrong or f'{len(bad)} differ: ' + ', '.join(bad[:8])}", flush=True)
        else:
            shutil.rmtree(run)
    figures = (runs, tally["kills"], tally["anew"], tally["files"], tally["differ"])
    return f"| `{case.name}` | {first.seconds:.1f} s | " + " | ".join(map(str, figures)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="killed runs of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--commands", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES])
    parser.add_argument("--signal", choices=["kill", "int"], default="kill", help="SIGKILL, or SIGINT as Ctrl-C sends it")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    place = options.output.resolve()
    place.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums must have one order
    if not (place / "reward.py").is_file():
        subprocess.run([sys.executable, "-c", MAKE, place], cwd=ROOT, check=True)
        (place / "reward.py").write_text(REWARD)
    chosen = [case for case in CASES if case.name in options.commands]
    rows = ["| command | one run | killed runs | kills | began anew | files compared | runs that differ |", "| --- " * 7 + "|"]
    for case in chosen:
        rows.append(soak(case, place / case.name.replace(" ", "-"), options.runs, options.seed, SENT[options.signal]))
        (place / "table.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
