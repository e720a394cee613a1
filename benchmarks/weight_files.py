"""Where a metric's weights are, whether they are the published ones, and how to read them without running anything they hold.

Searched, in this order: `--weights-dir` or the environment variable PORTRAITKIT_WEIGHTS, then the folders into which pyiqa, torch,
CLIP and insightface put what they download. Nothing is ever downloaded here.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from benchmarks.metric import Metric, WeightFile
from portraitkit.errors import WeightsError, reason_of

VARIABLE = "PORTRAITKIT_WEIGHTS"
DEFAULT = Path("~/.cache/portraitkit/weights")


@dataclass(frozen=True)
class MetricWeights:
    """The files of a metric."""

    files: Mapping[str, Path]  # by the name the metric knows them by
    sha256: Mapping[str, str]  # of each
    notes: tuple[str, ...]  # what a reader of the values should know about the files, one line each
    where: str = ""  # device and type of a GPU, whose values are kept apart; empty on a CPU

    @property
    def key(self) -> str:
        """One hash of all files, for the cache."""
        text = "\n".join(f"{name} {digest}" for name, digest in sorted(self.sha256.items()))
        return hashlib.sha256(f"{text}{self.where}".encode()).hexdigest()[:16]


def search_folders(option: Path | None) -> list[Path]:
    """The folder named on the command line, by the environment, or the default one, then other programs' caches; none need exist."""
    cache = Path(os.environ.get("TORCH_HOME") or "~/.cache/torch").expanduser() / "hub"
    others = [cache / "pyiqa", cache / "checkpoints", Path("~/.cache/clip"), Path("~/.insightface/models/buffalo_l")]
    return [folder.expanduser() for folder in (option or Path(os.environ.get(VARIABLE) or DEFAULT), *others)]


def find_weights(metric: Metric, folders: Sequence[Path], digest: "Digests") -> MetricWeights:
    """The files of a metric, from the first folder that has each, with their hashes checked.
    WeightsError: a file is missing (the message says what to get and where to put it), or is not the published one."""
    files: dict[str, Path] = {}
    notes: list[str] = []
    for wanted in metric.weights:
        path = locate(wanted, folders)
        if path is None:
            if wanted.optional:
                continue
            size = f"{wanted.mib:g} MiB; " if wanted.mib else ""
            raise WeightsError(f"needs {wanted.name} ({size}{metric.licence}): download {wanted.origin} and put it into {folders[0]}")
        files[wanted.name] = path
        notes += _check(wanted, path, digest(path))
    for path in metric.bundled:
        files.setdefault(path.name, path)
    if any(wanted.optional and wanted.name not in files for wanted in metric.weights):
        names = ", ".join(wanted.name for wanted in metric.weights if wanted.optional)
        notes.append(f"bundled parameters ({metric.revision}); pyiqa's own would need {names}")
    return MetricWeights(
        {name: path for name, path in files.items() if path not in metric.bundled},
        {name: digest(path) for name, path in files.items()},
        tuple(notes),
    )


def locate(wanted: WeightFile, folders: Sequence[Path]) -> Path | None:
    """The first place a file lies in, or its conversion to safetensors."""
    names = [wanted.name]
    if Path(wanted.name).suffix in (".pth", ".pt", ".bin"):
        names.insert(0, str(Path(wanted.name).with_suffix(".safetensors")))
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _check(wanted: WeightFile, path: Path, sha256: str) -> list[str]:
    fits = sha256.startswith(wanted.sha256)
    if wanted.from_name and path.name == wanted.name:
        return [] if fits else [f"{path.name}: sha256 {sha256[:16]}.. does not begin with the digits in its name; is it as published?"]
    if path.name == wanted.name and wanted.sha256:
        if not fits:
            raise WeightsError(f"{path}: sha256 {sha256[:16]}.., published is {wanted.sha256[:16]}..; download {wanted.origin} again")
        return []
    reason = "a conversion" if path.name != wanted.name else "no sha256 was published"
    return [f"{path.name}: sha256 {sha256[:16]}.. is not on record ({reason})"]


class Digests:
    """sha256 of files, each computed once while size and time of change stay the same. `known` is what an earlier run computed, by path,
    size and time of change; new ones are added.
    """

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self.known = {} if known is None else known

    def __call__(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in self.known:
            with path.open("rb") as file:
                self.known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.known[key]


def weights_table(metrics: Sequence[Metric], folders: Sequence[Path]) -> Table:
    """What each metric needs, for `--weights`."""
    columns = (Column(name, overflow="fold") for name in ("metric", "file", "MiB", "present", "licence", "from"))
    table = Table(*columns, title=f"Weights; put files into {folders[0]} (--weights-dir or PORTRAITKIT_WEIGHTS)", show_lines=True)
    digest = Digests()
    for metric in metrics:
        if not metric.weights:
            table.add_row(metric.name, "none", "", "bundled" if metric.bundled else "needs none", metric.licence, metric.revision)
        for wanted in metric.weights:
            path = locate(wanted, folders)
            state = "no (optional)" if wanted.optional else "no"
            if path is not None:
                sha256 = digest(path)
                known = path.name == wanted.name and wanted.sha256
                state = ("yes" if sha256.startswith(wanted.sha256) else "damaged") if known else "yes, hash not on record"
            hashed = f"{wanted.name}\nsha256 {wanted.sha256 or 'not published'}"
            table.add_row(metric.name, hashed, f"{wanted.mib:g}", state, metric.licence, f"{wanted.origin}\n{metric.revision}")
    return table


def with_weights(
    metrics: Sequence[Metric], folders: Sequence[Path], digest: Digests
) -> tuple[list[tuple[Metric, MetricWeights]], dict[str, str]]:
    """The metrics whose files are there, with them; and of each of the others why not."""
    ready, skipped = [], {}
    for metric in metrics:
        try:
            ready.append((metric, find_weights(metric, folders, digest)))
        except WeightsError as error:
            skipped[metric.name] = str(error)
    return ready, skipped


def read_state(path: Path, *, torchscript_sha256: str = "") -> dict[str, Any]:
    """A state dict: safetensors, or `torch.load(weights_only=True)`; never a full unpickling. `params`, `state_dict` or a DataParallel
    prefix inside are peeled off; `torchscript_sha256` is the published hash of the one TorchScript archive that may be opened ("" for
    none). WeightsError: the file is damaged, holds more than tensors, or one that is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from portraitkit.runs.checkpoint import check_weights

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        elif torchscript_sha256 and _is_torchscript(path):
            if Digests()(path) != torchscript_sha256:
                raise WeightsError(f"{path}: a TorchScript archive that is not the published one; convert its state dict to safetensors")
            state = dict(torch.jit.load(path, map_location="cpu").state_dict())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # as torch says of what is no pickle at all
            raise WeightsError(f"{path}: is damaged, no file of weights; download it again") from error
        raise WeightsError(f"{path}: holds more than tensors, and unpickling it could run code; convert it to safetensors") from error
    except (SafetensorError, RuntimeError, ValueError, LookupError, EOFError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read ({reason_of(error)}); download it again") from error
    for key in ("params", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds no state dict; download it again")
    check_weights(path, state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
