"""Weights with NaN or infinity, of any kind, are refused by the name of their tensor; a picture that is not finite is not written."""

import json
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.metrics.brisque import read_original
from benchmarks.weight_files import read_state
from policies.retoucher.backbones import load_backbone, tiny
from policies.retoucher.model.adapter import FILE, attach_adapter, load_lora, save_lora
from policies.retoucher.retouch.command import retouch_main
from portraitkit.errors import ImageError, WeightsError
from portraitkit.faces.portraits import bundled_portraits
from portraitkit.pictures.images import write_image
from portraitkit.vlm.model import load_model
from reward_models.judge.backends import TransformersBackend
from tools.embedded import tiny_kontext

BAD = [torch.nan, torch.inf, -torch.inf]


def spoil(path, value, match=""):
    """One value of one tensor of a safetensors file becomes `value`; returns the tensor's name."""
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if match in name and tensors[name].is_floating_point())
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


@pytest.fixture
def backbone():
    return tiny.wrap(tiny_kontext.build_pipeline(0))


@pytest.fixture
def adapter(backbone, tmp_path):
    from peft import LoraConfig

    backbone.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=backbone.lora_targets))
    save_lora(backbone.transformer, tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("value", BAD)
def test_an_adapter(adapter, backbone, value, tmp_path):
    name = spoil(adapter / FILE, value, "lora_B").removeprefix("transformer.")
    fresh = tiny.wrap(tiny_kontext.build_pipeline(0))
    names = [key for key, _ in fresh.transformer.named_parameters()]
    with pytest.raises(WeightsError, match=f"{FILE}: tensor .*{name} is not finite"):
        attach_adapter(fresh, adapter)
    assert names == [key for key, _ in fresh.transformer.named_parameters()], "nothing was added"
    with pytest.raises(WeightsError, match="is not finite"):  # --init-adapter
        load_lora(backbone.transformer, adapter)


def test_retouch_portrait_writes_nothing(adapter, tmp_path):
    spoil(adapter / FILE, torch.nan)
    write_image(tmp_path / "p.png", bundled_portraits()["astronaut"])
    with pytest.raises(WeightsError, match="is not finite"):
        retouch_main([str(tmp_path / "p.png"), str(tmp_path / "o.png"), "--adapter", str(adapter), "--device", "cpu"])
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_base(tmp_path, part):
    tiny_kontext.build_pipeline(0).save_pretrained(tmp_path)
    name = spoil(next((tmp_path / part).glob("*.safetensors")), torch.nan)
    with pytest.raises(WeightsError, match=rf"{part}: tensor .*{name} is not finite"):
        load_backbone("tiny", str(tmp_path), None, "cpu")


@cache
def tiny_model(folder):
    from tiny_vlm import write_tiny_vlm

    return write_tiny_vlm(folder)


@pytest.fixture
def model(tmp_path_factory, tmp_path):
    return shutil.copytree(tiny_model(tmp_path_factory.getbasetemp() / "not-finite"), tmp_path / "model")


@pytest.mark.parametrize("kind", ["model", "judge"])
def test_a_model_and_a_judge(model, kind):
    spoil(model / "model.safetensors", torch.inf)
    with pytest.raises(WeightsError, match=f"^{'--model' if kind == 'model' else 'judge'} .*: tensor .* is not finite"):
        load_model(str(model)) if kind == "model" else TransformersBackend.load(str(model))


def test_an_adapter_of_a_model(model, tmp_path):
    from peft import LoraConfig, get_peft_model

    from portraitkit.vlm.model import attach_adapter as attach

    get_peft_model(load_model(str(model)), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    spoil(tmp_path / "lora" / "adapter_model.safetensors", torch.nan)
    with pytest.raises(WeightsError, match="--adapter .*: tensor .* is not finite"):
        attach(load_model(str(model)), str(tmp_path / "lora"))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(model)}))
    with pytest.raises(WeightsError, match="judge .*: tensor .* is not finite"):
        TransformersBackend.load(str(tmp_path / "lora"))
    for alpha in (float("nan"), -1, "2", None):
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
        with pytest.raises(WeightsError, match="--adapter .*(lora_alpha|unsupported operand|not supported)"):
            attach(load_model(str(model)), str(tmp_path / "lora"))
    (tmp_path / "lora" / "adapter_config.json").write_text("{broken")
    with pytest.raises(WeightsError, match="adapter_config.json cannot be read"):
        TransformersBackend.load(str(tmp_path / "lora"))


def test_a_metric(tmp_path):
    save_file({"a.weight": torch.tensor([1.0, torch.nan])}, tmp_path / "net.safetensors")
    torch.save({"params": {"b.bias": torch.tensor([torch.inf])}}, tmp_path / "net.pth")
    torch.save((torch.tensor([torch.nan]), torch.zeros(1, 36)), tmp_path / "brisque.pt")
    for name, read, tensor in (("net.safetensors", read_state, "a.weight"), ("net.pth", read_state, "b.bias")):
        with pytest.raises(WeightsError, match=rf"{name}: tensor {tensor} is not finite"):
            read(tmp_path / name)
    with pytest.raises(WeightsError, match="coefficients is not finite"):
        read_original(tmp_path / "brisque.pt")


@pytest.mark.parametrize("value", BAD)
def test_a_picture_that_is_not_finite(tmp_path, value):
    pixels = torch.full((3, 8, 8), 0.5)
    pixels[1, 2, 3] = value
    with pytest.raises(ImageError, match="not finite"):
        write_image(tmp_path / "o.png", pixels)
    assert not any(tmp_path.iterdir())
