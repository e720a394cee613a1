"""`align-retoucher` in several processes, see `several_processes`; it notes each candidate's noise and what a process holds of the base."""

import functools
import hashlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from several_processes import Job, serve

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as `run_command` does

from policies.retoucher import photos, rank_groups, run  # noqa: E402
from policies.retoucher.backbones import flux_kontext, tiny  # noqa: E402, F401 (the same)
from policies.retoucher.config import RetoucherConfig  # noqa: E402
from policies.retoucher.main import align_retoucher  # noqa: E402
from policies.retoucher.photos import SyntheticSource  # noqa: E402
from policies.retoucher.processes import open_processes  # noqa: E402
from policies.retoucher.trainer import Trainer  # noqa: E402
from reward_models.reward_set import build_rewards  # noqa: E402
from tools.embedded import tiny_kontext  # noqa: E402


def train_each(rank: int, job: Job) -> None:
    """A training step of every method of the job on a random retoucher; the first process notes what it gave."""
    found = {}
    with open_processes("cpu") as processes:
        for name, options in job["methods"].items():
            config = RetoucherConfig.of(rewards=("blemish_removal", "texture"), **job["sizes"], **options)
            rewards = build_rewards(config.rewards, (), config.combine)
            backbone = tiny.wrap(tiny_kontext.build_pipeline(0))
            trainer = Trainer(config, backbone, SyntheticSource(tiny.RESOLUTION), rewards, Console(quiet=True), processes)
            result = trainer.train_step()
            losses = [figures.loss for figures in result.figures]
            weight = next(p for name, p in trainer.adapter.items() if "lora_B" in name and bool(p.any())).detach()
            found[name] = {"losses": losses, "norm": result.gradient_norm, "rewards": result.rewards.tolist(), "weight": weight[0].tolist()}
    if rank == 0:
        Path(f"{job['log']}.json").write_text(json.dumps(found))


def retouch(rank: int, job: Job) -> None:
    """Run the command, or train a step of some methods; never returns."""
    if "methods" in job:
        train_each(rank, job)
        sys.exit(0)
    log = Path(f"{job['log']}.{rank}")
    draw, noises = rank_groups.noise_of_groups, log.with_suffix(f".noise.{rank}")

    def noted(*given: Any, **settings: Any) -> Any:
        """Note what each candidate's noise is, and stop where the job says so."""
        noise = draw(*given, **settings)
        samples = [[values[row] for values in noise.steps.values()] for row in range(len(given[2]) * settings["group_size"])]
        digests = [hashlib.sha256(b"".join(value.numpy().tobytes() for value in sample)).hexdigest() for sample in samples]
        with noises.open("a") as file:
            file.write(json.dumps({"step": settings["iteration"], "groups": given[2], "noise": digests}) + "\n")
        if [rank, settings["iteration"]] == job.get("interrupt"):
            os.kill(os.getpid(), signal.SIGINT)
        return noise

    divide = run.divide_base

    def weighed(backbone: Any, device: str) -> None:
        """Note how much of the base this process holds after it was divided."""
        whole = sum(parameter.numel() for parameter in backbone.transformer.parameters())
        divide(backbone, device)
        own = sum(parameter.to_local().numel() for parameter in backbone.transformer.parameters())
        log.with_suffix(f".held.{rank}").write_text(str(own / whole))

    rank_groups.noise_of_groups, run.divide_base = noted, weighed
    sys.argv = ["align-retoucher", *job["options"]]
    align_retoucher()


if __name__ == "__main__":
    # What every process would load and draw anew: the libraries of the embedded retoucher, and people.
    tiny.load_tiny(None, None, "cpu")
    photos.make_case = functools.lru_cache(maxsize=64)(photos.make_case)
    for split, count in (("train", 6), ("validation", 3), ("held_out", 2)):
        SyntheticSource(tiny.RESOLUTION).load(split, list(range(count)))
    serve(retouch)
