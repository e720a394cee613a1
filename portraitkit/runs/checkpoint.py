"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is written into a temporary folder, flushed to disk, marked COMPLETE with the sha256 of every file, and only then
renamed to `checkpoint-<step>`. Tensors are safetensors, everything else is JSON; nothing is pickled.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from portraitkit.errors import CheckpointError, WeightsError

MARKER = "COMPLETE"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back."""

    step: int  # training step at which it was written
    tensors: dict[str, dict[str, Tensor]]  # one dictionary of tensors a name, as given to `save_checkpoint`
    state: dict[str, Any]  # JSON-able state, as given
    path: Path  # its folder
    note: str  # which checkpoint was taken and why, one line for the user


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], *, limit: int | None) -> Path:
    """Write `folder/checkpoint-<step>` in one piece or not at all; returns the checkpoint's folder. One of that step is replaced.

    There is one safetensors file a name of `tensors`; `state` is JSON-able. Older complete checkpoints beyond `limit`, the new one among
    these, are removed after it is safe; None keeps all.
    CheckpointError: the disk is full or not writable; the temporary folder is removed, older checkpoints are untouched.
    """
    final, temporary = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.{os.getpid()}"
    replaced = folder / f".checkpoint-{step}.replaced"
    size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    for leftover in folder.glob(".checkpoint-*"):  # of a save that was killed: a run folder has one writer
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, group in {"rng": rng_state(), **tensors}.items():
            save_file({key: t.detach().contiguous().cpu().clone() for key, t in group.items()}, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": step, "state": state}), encoding="utf-8")
        sums = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MARKER).write_text(json.dumps(sums, indent=2), encoding="utf-8")
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        if final.exists():
            final.rename(replaced)  # whole until the new one stands
        temporary.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{final}: could not be written ({reason}); it needs {size / 2**20:.1f} MiB there; earlier checkpoints are intact"
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)
    if limit is not None:
        others = [path for path in complete_checkpoints(folder) if path != final]
        for old in others[: len(others) - max(limit - 1, 0)]:
            shutil.rmtree(old.rename(folder / f".{old.name}.old"))  # never half of one; what a kill leaves goes with the next save
    return final


def find_checkpoint(folder: Path, which: str = "latest") -> Path:
    """The folder of a checkpoint that was written to its end, by `save_checkpoint` or by transformers' trainer.

    Raises:
        CheckpointError: there is none, or it is incomplete.
    """
    if which == "latest":
        if complete := complete_checkpoints(folder):
            return complete[-1]
        raise CheckpointError(f"{folder}: holds no complete checkpoint; leave --resume-from-checkpoint out and use --overwrite")
    if not Path(which).is_dir():
        raise CheckpointError(f"{which}: no such checkpoint folder; give an existing one, or latest")
    if not _is_complete(Path(which)):
        missing = f"neither {MARKER} nor a trainer_state.json beside weights"
        raise CheckpointError(f"{which}: no complete checkpoint, it was not written to the end ({missing}); give an earlier one, or latest")
    return Path(which)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder that were written to their end, by their steps."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted((path for path in numbered if _is_complete(path)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Training steps that a checkpoint's folder has in its name; CheckpointError: it was renamed."""
    if not (number := checkpoint.name.rpartition("-")[2]).isdecimal():
        raise CheckpointError(f"{checkpoint}: its name does not say the step; give a checkpoint-N folder, or latest")
    return int(number)


def check_processes(checkpoint: Path | None, count: int, *, allow_changed: bool = False) -> str | None:
    """Refuse to go on from a checkpoint with another number of processes than this run's `count`, unless that is allowed and can be.

    DeepSpeed's checkpoints hold a share of the optimiser for each process, which no other number can read: with them it cannot be. Returns
    what is not as in the run before, for the user; None where nothing is but the rounding of sums.
    CheckpointError: it was written by another number.
    """
    before = count if checkpoint is None else _processes_of(checkpoint) or count
    if checkpoint is None or before == count:
        return None
    written = f"{checkpoint}: was written by {before} process{'es' if before > 1 else ''}, this run has {count}"
    start = f"start {before}, as with torchrun --nproc-per-node {before}"
    if any(checkpoint.glob("global_step*")):
        raise CheckpointError(f"{written}; {start}, each holds a share of DeepSpeed's optimiser: --allow-changed cannot change that")
    ours = (checkpoint / MARKER).is_file()
    if not allow_changed:
        otherwise = "results that are not the same to the bit" if ours else "updates of another size"
        raise CheckpointError(f"{written}; {start}, or use --allow-changed to go on with {otherwise}")
    return None if ours else f"{written}: an update takes {count}/{before} of the rows, other ones, and random numbers start anew"


def _processes_of(checkpoint: Path) -> int | None:
    """How many processes wrote it; None of a damaged one, which is told by whoever reads it."""
    if not (checkpoint / MARKER).is_file():
        return len(list(checkpoint.glob("rng_state_*.pth"))) or 1
    try:
        return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["state"].get("processes", 1)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _is_complete(path: Path) -> bool:
    """Our marker is written last, as is the trainer's state, in which a kill may come; DeepSpeed has shares of the weights in a folder."""
    if (path / MARKER).is_file():
        return True
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(any(path.glob(name)) for name in ("*.safetensors", "global_step*"))


def drop_checkpoints(folder: Path, limit: int | None) -> None:
    """Remove all checkpoints but the newest `limit` that are complete: what a killed trainer was writing or removing."""
    whole = complete_checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if path.name.removeprefix("checkpoint-").isdecimal() and path not in whole[-(limit or len(whole)) :]:
            shutil.rmtree(path)


def load_checkpoint(folder: Path, which: str = "latest") -> Checkpoint:
    """Read a checkpoint back, every file checked against its sha256: the one with the highest step for `latest`, else that of a path.

    Raises:
        CheckpointError: there is none, it is incomplete, or a file is missing, cut or changed; the file is named.
    """
    path = find_checkpoint(folder, which)
    broken = sorted({found.name for found in folder.glob("checkpoint-*")} - {found.name for found in complete_checkpoints(folder)})
    note = f"resuming from {path}, {'the latest complete checkpoint' if which == 'latest' else 'as asked'}"
    note += f" (incomplete and passed over: {', '.join(broken)})" if which == "latest" and broken else ""
    try:
        sums = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path / MARKER}: unreadable; the checkpoint is damaged, give an earlier one") from error
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing; the checkpoint is damaged, give --resume-from-checkpoint an earlier one")
        if _sha256(path / name) != expected:
            raise CheckpointError(f"{path / name}: sha256 differs from the recorded one; the checkpoint is damaged, give an earlier one")
    stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors = {Path(name).stem: load_file(path / name) for name in sums if name.endswith(".safetensors")}
    set_rng_state(tensors.pop("rng"))
    return Checkpoint(stored["step"], tensors, stored["state"], path, note)


def check_weights(where: str | Path, weights: torch.nn.Module | Mapping[str, Any]) -> None:
    """Refuse weights with NaN or infinity: what they make looks like a mistake of the picture.

    They come from `where`, and are a network, or tensors by name; what is no tensor of floats, or has no data here, is passed over.
    WeightsError: a tensor is not finite; it is named.
    """
    for name, value in (weights.state_dict() if isinstance(weights, torch.nn.Module) else weights).items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and not value.is_meta:
            ends = torch.stack(torch.aminmax(value if value.element_size() > 1 else value.float()))
            if not ends.isfinite().all():
                raise WeightsError(
                    f"{where}: tensor {name} is not finite (it holds NaN or infinity); download the weights again, or train anew"
                )


def rng_state() -> dict[str, Tensor]:
    """State of Python's, numpy's and torch's global generators (CUDA's too, where there is one), as tensors."""
    version, words, gauss = random.getstate()
    mersenne = np.random.get_state(legacy=False)
    keys, position = mersenne["state"]["key"], mersenne["state"]["pos"]
    has_gauss, cached = mersenne["has_gauss"], mersenne["gauss"]
    states = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([gauss if gauss is not None else torch.nan], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    for index in range(torch.cuda.device_count()):
        states[f"cuda_{index}"] = torch.cuda.get_rng_state(index)
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Put back what `rng_state` returned."""
    version, *words = states["python"].tolist()
    gauss = float(states["python_gauss"])
    random.setstate((version, tuple(words), None if gauss != gauss else gauss))
    position, has_gauss, cached = states["numpy_rest"].tolist()
    np.random.set_state(("MT19937", states["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(states["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda_{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda_{index}"], index)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's per-parameter state as a flat dictionary `"<index>/<name>"`, with `"<index>/<group>/<name>"` for what is nested.

    Numbers become 0-d float64 tensors.
    """
    flat = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            inner = {f"{name}/{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
            for key, item in inner.items():
                flat[f"{index}/{key}"] = item if isinstance(item, Tensor) else torch.tensor(item, dtype=torch.float64)
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Put back what `flatten_optimizer` returned; learning rates and other settings stay as configured.

    Raises:
        CheckpointError: the state belongs to more parameters than the optimiser has.
    """
    states: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        index, *groups, name = key.split("/")
        place = states.setdefault(int(index), {})
        for group in groups:
            place = place.setdefault(group, {})
        number = float(value) if value.dtype == torch.float64 and value.ndim == 0 else None
        place[name] = value.clone() if number is None else int(number) if number.is_integer() else number
    have = sum(len(group["params"]) for group in optimizer.param_groups)
    if states and max(states) >= have:
        raise CheckpointError(f"optimiser state of parameter {max(states)}, but there are {have}: the checkpoint is of another model")
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
