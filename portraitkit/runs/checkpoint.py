"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is written into a temporary folder, flushed to disk, marked COMPLETE with the sha256 of every file, and only then
renamed to `checkpoint-<step>`. Tensors are safetensors, everything else is JSON; nothing is pickled.
"""

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from portraitkit.errors import CheckpointError

MARKER = "COMPLETE"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        step: training step at which it was written.
        tensors: one dictionary of tensors a name, as given to `save_checkpoint`.
        state: JSON-able state, as given.
        path: its folder.
        note: which checkpoint was taken and why, one line for the user.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path
    note: str


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], *, limit: int | None) -> Path:
    """Write `folder/checkpoint-<step>` in one piece or not at all.

    Args:
        folder: the run folder.
        step: training step; an existing checkpoint of that step is replaced.
        tensors: one safetensors file a name.
        state: JSON-able; random generators' states belong in `tensors` (see `rng_state`).
        limit: how many checkpoints to keep, the new one always among them; older complete ones are removed after it is safe.
            None keeps all.

    Returns:
        The checkpoint's folder.

    Raises:
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
            save_file(
                {key: t.detach().contiguous().cpu().clone() for key, t in group.items()},
                temporary / f"{name}.safetensors",
            )
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
        others = sorted((path for path in _complete(folder) if path != final), key=_step_of, reverse=True)
        for old in others[max(limit - 1, 0) :]:
            shutil.rmtree(old)
    return final


def find_checkpoint(folder: Path, which: str = "latest") -> tuple[Path, str]:
    """The folder of a checkpoint that was written to its end, and one line on why this one was taken.

    Raises:
        CheckpointError: there is none, or it is incomplete.
    """
    if which == "latest":
        complete = _complete(folder)
        if not complete:
            raise CheckpointError(f"{folder}: holds no complete checkpoint; start without --resume-from-checkpoint")
        path = max(complete, key=_step_of)
        broken = [p.name for p in folder.glob("checkpoint-*") if p not in complete]
        note = f"resuming from {path}, the latest complete checkpoint"
        note += f" (incomplete and passed over: {', '.join(sorted(broken))})" if broken else ""
    else:
        path = Path(which)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such checkpoint folder; give an existing one, or latest")
        if not (path / MARKER).is_file():
            raise CheckpointError(f"{path}: was not written to the end (no {MARKER} file); use an earlier checkpoint, or latest")
        note = f"resuming from {path}, as asked"
    return path, note


def load_checkpoint(folder: Path, which: str = "latest") -> Checkpoint:
    """Read a checkpoint back, every file checked against its sha256.

    Args:
        folder: the run folder.
        which: `latest` takes the complete checkpoint with the highest step; anything else is the path of one.

    Raises:
        CheckpointError: there is none, it is incomplete, or a file is missing, cut or changed; the file is named.
    """
    path, note = find_checkpoint(folder, which)
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
        place[name] = _number(value) if value.dtype == torch.float64 and value.ndim == 0 else value.clone()
    have = sum(len(group["params"]) for group in optimizer.param_groups)
    if states and max(states) >= have:
        raise CheckpointError(f"optimiser state of parameter {max(states)}, but there are {have}: the checkpoint is of another model")
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _number(value: Tensor) -> float:
    number = float(value)
    return int(number) if number.is_integer() else number


def _complete(folder: Path) -> list[Path]:
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return [path for path in numbered if (path / MARKER).is_file()]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
