import pytest
import torch

from portraitkit.errors import ConfigError, WeightsError
from portraitkit.vlm.model import count_parameters, load_model, load_processor, model_path, vision_tower


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "just-a-name", "a/b/c"])
def test_what_is_no_model_is_named(source):
    with pytest.raises(WeightsError) as error:
        model_path(source)
    assert source in str(error.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="config.json"):
        load_processor(str(tmp_path))


def test_damaged_weights_are_refused(tiny_vlm, tmp_path):
    *_, folder = tiny_vlm
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_model(str(tmp_path))


def test_a_frozen_vision_tower_is_frozen(tiny_vlm):
    *_, folder = tiny_vlm
    model = load_model(str(folder), freeze_vision=True)
    assert not any(parameter.requires_grad for parameter in vision_tower(model).parameters())
    every, trained = count_parameters(model)
    assert 0 < trained < every


def test_a_model_without_a_known_tower_says_so():
    with pytest.raises(ConfigError, match="Linear has no vision tower"):
        vision_tower(torch.nn.Linear(1, 1))
