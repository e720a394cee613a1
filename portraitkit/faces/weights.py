"""The vendored weight files: where they lie, what they must hash to, how TensorFlow.js packs them.

The files are byte-exact copies out of npm packages (see NOTICE). None is a pickle: each is a flat binary described by a
JSON manifest.
"""

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from portraitkit.errors import WeightsError

FOLDER = Path(__file__).parent / "weights"

SHA256 = {
    "blazeface.bin": "dc9a97fdc50bc43216554bdd69aa3e7b9361a519ee7bdd996a2f69a98a6f9b72",
    "blazeface.json": "cd7bbfc078270572beb39f9e5ae67aadbd50b5e67cff37e6d4f6b3ea39312e5f",
    "face_recognition_model-weights_manifest.json": "cbaffa501b0b9275a12b63357a6843e7e30c054e1c9151e1a5f879b26e32986b",
    "face_recognition_model.bin": "b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589",
    "facemesh.bin": "3826da640b0a3021161605369ee6af293f75d518040355b960ec71a3390c1c0b",
    "facemesh.json": "b60ca26f404724f43bd2b1575761d8265180e1f053cc0731caa68462927309e7",
}


def read_weights(name: str, folder: Path = FOLDER) -> bytes:
    """Read one vendored file, a key of `SHA256`, and check its sha256.

    Raises:
        WeightsError: the file is missing, or its sha256 is not the recorded one.
    """
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}: the file belongs to portraitkit, reinstall it") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[name]:
        raise WeightsError(f"{path}: sha256 is {digest[:12]}.., must be {SHA256[name][:12]}..: reinstall portraitkit")
    return data


def read_json(name: str, folder: Path = FOLDER) -> Any:
    """Read one vendored JSON file after checking its sha256, as `read_weights` does."""
    return json.loads(read_weights(name, folder))


def unpack_weights(entries: list[dict[str, Any]], data: bytes) -> dict[str, Tensor]:
    """Unpack a TensorFlow.js weight file: tensors lie one after the other, each perhaps quantised.

    Args:
        entries: the manifest's list of {"name", "shape", "dtype", "quantization"?}.
        data: the flat file.

    Returns:
        Tensors by name, in TensorFlow's own layout (filters are HWIO): float32, or int32 where the manifest says so.

    Raises:
        WeightsError: the file is shorter or longer than its manifest says.
    """
    tensors, offset = {}, 0
    for entry in entries:
        quantisation = entry.get("quantization", {})
        stored = np.dtype(quantisation.get("dtype", entry["dtype"])).newbyteorder("<")
        count = prod(entry["shape"])
        if offset + count * stored.itemsize > len(data):
            raise WeightsError(f"weights end at byte {len(data)}, inside {entry['name']}: reinstall portraitkit")
        values = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
        offset += values.nbytes
        if "scale" in quantisation:
            values = values.astype(np.float64) * quantisation["scale"] + quantisation["min"]
        target = np.int32 if entry["dtype"] == "int32" else np.float32
        tensors[entry["name"]] = torch.from_numpy(values.astype(target))
    if offset != len(data):
        raise WeightsError(f"weights hold {len(data)} bytes, their manifest describes {offset}: reinstall portraitkit")
    return tensors
