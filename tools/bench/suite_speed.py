"""`make bench`: the suite against a plain loop of pyiqa's metric calls and against pyiqa's own command, same pictures, same weights.

NIMA, MUSIQ, TOPIQ, NIQE, BRISQUE and PIQE on photographs of 512 px. The weights of the nets are random: they cost the same, and what
their values are does not matter here but that they are equal. In turns, in one process; loading is left out of the loop's time and of
the suite's. The commands are compared as wholes, from start to end. Then the suite again, from its cache. Values are compared with those of
pyiqa on one core, which is what the suite gives each metric: pyiqa's BRISQUE on two differs from itself on one by a hundredth.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.metric import Score

NAMES = ("nima", "musiq", "topiq_nr", "niqe", "brisque", "piqe")
WRAPPED = """
from benchmarks.nets.pyiqa_nets import no_downloads, quiet
with quiet():
    import pyiqa.pyiqa_cmd
with no_downloads():
    pyiqa.pyiqa_cmd.main()
"""


def write_pictures(folder: Path, count: int, side: int) -> list[Path]:
    """Crops of the portraits that scikit-image and matplotlib ship, all different."""
    from portraitkit.faces.portraits import bundled_portraits
    from portraitkit.pictures.images import resize, write_image

    paths, portraits = [], list(bundled_portraits().values())
    for number in range(count):
        picture = portraits[number % 2]
        edge = 380 + 12 * (number // 2 % 8)
        crop = picture[:, number : number + edge, 2 * number : 2 * number + edge]
        paths.append(folder / f"{number:03d}.png")
        write_image(paths[-1], resize(crop, (side, side)).clamp(0, 1))
    return paths


def write_weights(folder: Path) -> None:
    """Random weights as pyiqa stores them, and as safetensors for the suite; the real parameters of NIQE and BRISQUE."""
    import scipy.io
    from safetensors.torch import save_file

    from benchmarks.metrics import brisque, built_in_metrics, niqe
    from benchmarks.nets.pyiqa_nets import empty_net

    torch.manual_seed(0)
    for name in ("nima", "musiq", "topiq_nr"):
        path = folder / built_in_metrics()[name].weights[0].name
        state = {key: value.contiguous().clone() for key, value in empty_net(name).state_dict().items()}
        torch.save(state if name == "musiq" else {"params": state}, path)
        save_file(state, path.with_suffix(".safetensors"))
    mean, covariance = niqe.read_parameters()
    scipy.io.savemat(folder / "niqe_modelparameters.mat", {"mu_prisparam": mean[None].numpy(), "cov_prisparam": covariance.numpy()})
    machine = brisque.read_machine(brisque.BUNDLED, brisque.RANGES)
    torch.save((machine.coefficients.float()[:, None], machine.vectors.float()), folder / brisque.OFFICIAL)


def plain_loop(paths: list[Path]) -> Callable[[], dict[str, list[float]]]:
    """One metric after the other, one file after the other: what pyiqa's documentation shows."""
    from benchmarks.nets.pyiqa_nets import no_downloads, quiet

    with quiet(), no_downloads():
        import pyiqa

        metrics = {name: pyiqa.create_metric(name, device="cpu") for name in NAMES}
    return lambda: {name: [metric(str(path)).item() for path in paths] for name, metric in metrics.items()}


def suite_run(paths: list[Path], weights: Path, cache: Path) -> Callable[[bool], dict[str, list[float]]]:
    """The suite on the same files; with True from an empty cache, with False from what the last run left."""
    from benchmarks.inputs import Folder, match
    from benchmarks.metrics import load_metrics
    from benchmarks.store import Store
    from benchmarks.suite import Suite
    from benchmarks.weight_files import Digests, find_weights

    found = [(metric, find_weights(metric, [weights], Digests())) for metric in load_metrics(NAMES)]
    ready = [(replace(metric, open=partial(_opened, metric.open(files.files))), files) for metric, files in found]

    def run(fresh: bool) -> dict[str, list[float]]:
        if fresh:
            for path in cache.glob("values.sqlite*"):
                path.unlink()
        inputs = match({"all": Folder({path.stem: path for path in paths})}, None, None)
        with Store(cache) as store:
            results = Suite(ready, store, Digests(store.digests())).run(inputs)
        return {name: results.values[name].tolist() for name in NAMES}

    return run


def _opened(score: Score, files: Mapping[str, Path]) -> Score:
    return score


def command_seconds(pictures: Path, home: Path, weights: Path) -> tuple[float, float]:
    """Seconds of pyiqa's command and of ours, from start to end, reports and all."""
    environment = os.environ | {"TORCH_HOME": str(home)}
    ours = [sys.executable, "-c", "from benchmarks.main import benchmark_portraits as b; b()", "--method", f"all={pictures}"]
    ours += ["--metrics", *NAMES, "--weights-dir", str(weights), "--cache", str(home / "c"), "--output-dir", str(home / "out")]
    seconds = []
    for command in ([sys.executable, "-c", WRAPPED, *NAMES, "-t", str(pictures), "--device", "cpu"], ours):
        start = time.perf_counter()
        subprocess.run(command, env=environment, capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def timed(run: Callable[[], dict[str, list[float]]]) -> tuple[float, dict[str, list[float]]]:
    """Seconds and values."""
    start = time.perf_counter()
    with torch.no_grad():
        values = run()
    return time.perf_counter() - start, values


def main() -> None:
    """Console entry of `python -m tools.bench.suite_speed`."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.suite_speed", description=__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="turns a median is taken of")
    parser.add_argument("--no-commands", action="store_true", help="leave the two commands out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        home = Path(name)
        os.environ["TORCH_HOME"] = name  # before pyiqa is imported: it looks for weights there
        weights, pictures = home / "hub" / "pyiqa", home / "pictures"
        for folder in (weights, pictures, home / "cache"):
            folder.mkdir(parents=True)
        paths = write_pictures(pictures, args.pictures, args.side)
        write_weights(weights)
        loop, suite = plain_loop(paths), suite_run(paths, weights, home / "cache")
        slow, fast, warm = [], [], []
        ours: dict[str, list[float]] = {}
        for _ in range(args.repeats):
            seconds, _ = timed(loop)
            slow.append(seconds)
            seconds, ours = timed(lambda: suite(True))
            fast.append(seconds)
            seconds, again = timed(lambda: suite(False))
            warm.append(seconds)
            assert again == ours
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        _, theirs = timed(loop)
        torch.set_num_threads(threads)
        table = Table(title=f"{args.pictures} pictures of {args.side} px, {threads} threads, median of {args.repeats}")
        for column in ("", "seconds", "a picture"):
            table.add_column(column, justify="right" if column else "left")
        for title, seconds in (("pyiqa, plain loop", slow), ("suite", fast), ("suite, from its cache", warm)):
            table.add_row(title, f"{median(seconds):.3f}", f"{median(seconds) / len(paths):.4f}")
        console = Console(width=100)
        console.print(table)
        gaps = {name: max(abs(a - b) for a, b in zip(theirs[name], ours[name], strict=True)) for name in NAMES}
        shown = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
        console.print(f"largest difference of values, pyiqa on one core: {shown}", highlight=False)
        console.print(f"the suite is {median(slow) / median(fast):.1f}x as fast as the loop", highlight=False)
        console.print(f"from its cache {median(fast) / median(warm):.0f}x as fast as without", highlight=False)
        if not args.no_commands:
            pyiqa_s, ours_s = command_seconds(pictures, home, weights)
            console.print(f"commands: pyiqa {pyiqa_s:.1f} s, benchmark-portraits {ours_s:.1f} s, {pyiqa_s / ours_s:.1f}x", highlight=False)


if __name__ == "__main__":
    main()
