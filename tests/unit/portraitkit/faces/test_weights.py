import shutil

import numpy as np
import pytest
import torch

from portraitkit.errors import WeightsError
from portraitkit.faces.tfjs import FOLDER, SHA256, read_weights, unpack_weights


def test_every_vendored_file_has_its_recorded_hash():
    sizes = [len(read_weights(name)) for name in SHA256]
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(SHA256)
    assert sum(sizes) < 9_000_000


def test_one_flipped_bit_is_refused(tmp_path):
    shutil.copy(FOLDER / "blazeface.bin", tmp_path)
    data = bytearray((tmp_path / "blazeface.bin").read_bytes())
    data[1000] ^= 1
    (tmp_path / "blazeface.bin").write_bytes(data)
    with pytest.raises(WeightsError, match=r"blazeface\.bin: sha256 is [0-9a-f]{12}\.\., must be dc9a97fdc50b"):
        read_weights("blazeface.bin", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"facemesh\.bin: No such file"):
        read_weights("facemesh.bin", tmp_path)


def test_dequantisation():
    entries = [
        {"name": "a", "shape": [2], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.0}},
        {"name": "b", "shape": [1], "dtype": "float32", "quantization": {"dtype": "float16"}},
        {"name": "c", "shape": [2, 1], "dtype": "int32"},
        {"name": "d", "shape": [], "dtype": "float32"},
    ]
    data = bytes([0, 4]) + np.float16(0.25).tobytes() + np.array([7, -3], "<i4").tobytes() + np.float32(2.5).tobytes()
    tensors = unpack_weights(entries, data)
    assert tensors["a"].tolist() == [-1.0, 1.0]
    assert tensors["b"].tolist() == [0.25]
    assert tensors["c"].tolist() == [[7], [-3]] and tensors["c"].dtype == torch.int32
    assert tensors["d"].item() == 2.5
    with pytest.raises(WeightsError, match="end at byte"):
        unpack_weights(entries, data[:-1])
    with pytest.raises(WeightsError, match="hold 17 bytes, their manifest describes 16"):
        unpack_weights(entries, data + b"x")
