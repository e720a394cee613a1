"""Nothing that came with data or weights runs, and nothing is fetched unless asked for."""

import json
import pickle
import shutil
import socket

import pytest
import torch
from unpickled import Touch

from benchmarks.weight_files import read_state
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.retouch.command import retouch_main
from portraitkit.errors import ConfigError, DataError, WeightsError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image
from portraitkit.vlm.model import EMBEDDED, load_model, load_processor
from preference_data.pair_set import check_inside

CODE = 'from pathlib import Path\nPath(__file__).with_name("ran").touch()\nfrom transformers import PretrainedConfig as Evil\n'


@pytest.mark.parametrize("load", [load_model, load_processor])
def test_the_code_of_a_model_repository_is_not_run(tmp_path, load):
    """Row 28. transformers would ask on a terminal, and run it after a y."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE)
    classes = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
    config = {"model_type": "evil", "auto_map": {name: "evil.Evil" for name in classes}}
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps(config | {"processor_class": "Evil"}))
    with pytest.raises(WeightsError, match="could be loaded|could not be loaded"):
        load(str(folder))
    assert not (folder / "ran").exists()


def test_a_pickle_is_not_run(tmp_path):
    """Row 27."""
    torch.save({"a": Touch(tmp_path / "ran")}, tmp_path / "net.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Touch(tmp_path / "ran"), protocol=2))
    for name in ("net.pth", "raw.pth"):
        with pytest.raises(WeightsError, match=name):
            read_state(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["http://127.0.0.1/a.png", "https://example.org/a.png", "file:///etc/passwd", "data:image/png;base64,AA", "../a.png", "/etc/passwd"],
)
def test_addresses_and_paths_out_of_the_folder_are_refused(tmp_path, name):
    """Rows 25 and 26."""
    write_image(tmp_path / "a.png", torch.zeros(3, 8, 8))
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="nothing is fetched|leaves the data folder"):
        check_inside((tmp_path / "set").resolve(), name, "file_name")


def test_the_embedded_defaults_need_no_network(tmp_path, monkeypatch):
    """Row 33."""

    def refuse(*arguments, **_):
        raise AssertionError(f"a connection was tried: {arguments[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    write_image(tmp_path / "p.png", bundled_portraits()["astronaut"])
    arguments = [str(tmp_path / "p.png"), str(tmp_path / "o.png"), "--device", "cpu", "--num-steps", "1"]
    assert retouch_main(arguments) == 0 and (tmp_path / "o.png").is_file()
    load_processor("embedded")
    assert load_model("embedded").config.model_type.startswith("qwen2_5_vl")


def test_a_damaged_embedded_model_is_named(tmp_path):
    """Row 6, of weights: one that was cut off."""
    folder = shutil.copytree(EMBEDDED, tmp_path / "model")
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=f"--model {folder}: could not be loaded"):
        load_model(str(folder))


def test_a_group_of_one_is_refused():
    """Row 13."""
    with pytest.raises(ConfigError, match=r"group.size"):
        RetoucherConfig.of(group_size=1)
