"""A trained LoRA goes onto a fresh backbone with its own rank and alpha; any other LoRA is refused by its keys."""

import json

import pytest
import torch
from diffusers import FluxKontextPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from policies.retoucher.backbones import tiny
from policies.retoucher.model.adapter import FILE, METADATA, attach_adapter, check_start, read_adapter
from policies.retoucher.model.backbone import sample_ode
from portraitkit.errors import WeightsError
from tools.embedded import tiny_kontext


@pytest.fixture
def trained(backbone):
    """A backbone with LoRA layers of rank 3 that do something."""
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=backbone.lora_targets)
    backbone.transformer.add_adapter(settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return backbone


@pytest.fixture
def folder(trained, tmp_path):
    """The LoRA as diffusers writes it, with peft's configuration."""
    FluxKontextPipeline.save_lora_weights(
        str(tmp_path),
        transformer_lora_layers=get_peft_model_state_dict(trained.transformer),
        transformer_lora_adapter_metadata=trained.transformer.peft_config["default"].to_dict(),
    )
    return tmp_path


def fresh():
    return tiny.wrap(tiny_kontext.build_pipeline(0))


def picture(backbone):
    images = torch.rand(1, 3, tiny.RESOLUTION, tiny.RESOLUTION, generator=torch.Generator().manual_seed(2))
    return sample_ode(backbone, backbone.condition(images, "retouch"), backbone.noise(1, torch.Generator().manual_seed(3)), 2)


def test_the_attached_adapter_is_the_trained_one(trained, folder):
    backbone = fresh()
    base = picture(backbone)
    attach_adapter(backbone, folder)
    assert torch.equal(picture(backbone), picture(trained))
    assert not torch.equal(picture(backbone), base)
    assert not any(parameter.requires_grad for parameter in backbone.transformer.parameters())
    settings = backbone.transformer.peft_config["default"]
    assert (settings.r, settings.lora_alpha) == (3, 6)


def test_stock_diffusers_sees_the_same(trained, folder):
    backbone = fresh()
    backbone.pipeline.load_lora_weights(str(folder))
    ours = fresh()
    attach_adapter(ours, folder / FILE)
    assert torch.allclose(picture(backbone), picture(ours), atol=1e-6)


def test_without_metadata_alpha_is_the_rank(trained, folder):
    save_file(load_file(folder / FILE), folder / FILE, metadata={"format": "pt"})
    backbone, stock = fresh(), fresh()
    attach_adapter(backbone, folder)
    stock.pipeline.load_lora_weights(str(folder))
    assert backbone.transformer.peft_config["default"].lora_alpha == 3
    assert torch.allclose(picture(backbone), picture(stock), atol=1e-6)
    assert not torch.equal(picture(backbone), picture(trained))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if "single" not in k}, r"missing \(transformer\.single_transformer_bl"),
        (lambda t: t | {"transformer.x_embedder.lora_A.weight": torch.zeros(3, 4)}, r"1 foreign \(transformer\.x_embedder"),
        (lambda t: {k.replace("transformer.", "unet.", 1): v for k, v in t.items()}, r"foreign \(unet\."),
        (lambda t: {k: torch.cat([v, v], -1) if "lora_A" in k else v for k, v in t.items()}, "of another shape"),
        (lambda t: {k: v[:2] if k == sorted(t)[0] else v for k, v in t.items()}, r"ranks \[2, 3\] are mixed"),
        (lambda t: {"weight": torch.zeros(2)}, r"1 foreign \(weight\)"),
        (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, r"is int8 of shape .*; a LoRA holds floats"),
        (lambda t: t | {sorted(t)[0]: t[sorted(t)[0]] > 0}, "is bool of shape"),
        (
            lambda t: {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in t.items()},
            r"is float32 of shape \((0, [0-9]+|[0-9]+, 0)\); a LoRA",
        ),
        (
            lambda t: t | {"transformer.proj_out.alpha": torch.tensor([2.0, 3.0])},
            r"is float32 of shape \(2,\); .*number as alpha",
        ),
    ],
)
def test_a_lora_of_another_base_is_refused_by_its_keys(folder, change, message):
    save_file({key: value.contiguous() for key, value in change(load_file(folder / FILE)).items()}, folder / FILE)
    backbone = fresh()
    names = [name for name, _ in backbone.transformer.named_parameters()]
    with pytest.raises(WeightsError, match=message):
        attach_adapter(backbone, folder)
    assert names == [name for name, _ in backbone.transformer.named_parameters()], "nothing was added"


def test_what_is_no_lora_file(folder, tmp_path):
    with pytest.raises(WeightsError, match="no LoRA there; give a folder"):
        read_adapter(tmp_path / "nowhere")
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:5000])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_adapter(folder)
    for text in ("{", json.dumps([1])):
        save_file({"a": torch.zeros(1)}, folder / FILE, metadata={METADATA: text})
        with pytest.raises(WeightsError, match="no JSON object"):
            read_adapter(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("lora_alpha", value, "lora_alpha .*; it must be a number above 0") for value in (float("nan"), float("inf"), 1e39, 0, -2, "2", [2])]
    + [("alpha_pattern", {"proj_out": 99}, "one alpha for all modules")],
)
def test_an_alpha_that_cannot_be_followed_is_refused(folder, name, value, message):
    """NaN made every weight of the adapter NaN, and a pattern was passed over: another strength than it was trained with."""
    with safe_open(folder / FILE, framework="pt") as file:
        settings = json.loads(file.metadata()[METADATA])
    assert {"transformer.lora_alpha", "transformer.alpha_pattern"} <= settings.keys()
    save_file(load_file(folder / FILE), folder / FILE, metadata={METADATA: json.dumps(settings | {f"transformer.{name}": value})})
    for use in (read_adapter, lambda file: attach_adapter(fresh(), file), lambda file: check_start(file, 3, 6)):
        with pytest.raises(WeightsError, match=message):
            use(folder)


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_weights_of_8_bits_that_are_floats_are_taken(folder, layout):
    changed = LAYOUTS[layout](load_file(folder / FILE))
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in changed.items()}, folder / FILE)
    backbone = fresh()
    attach_adapter(backbone, folder)
    assert all(value.isfinite().all() for value in get_peft_model_state_dict(backbone.transformer).values())


def kohya(tensors):
    """Names as kohya's scripts write them, flat, with an alpha of twice the rank beside each."""
    named = {}
    for key, value in tensors.items():
        module, _, part = key.removeprefix("transformer.").rpartition(".lora_")
        flat = "lora_unet_" + module.replace(".", "_")
        named[f"{flat}.{'lora_down' if part.startswith('A') else 'lora_up'}.weight"] = value
        named[f"{flat}.alpha"] = torch.tensor(6.0)
    return named


LAYOUTS = {
    "ComfyUI": lambda tensors: {key.replace("transformer.", "diffusion_model.", 1): value for key, value in tensors.items()},
    "peft": lambda tensors: {f"base_model.model.{key.removeprefix('transformer.')}": value for key, value in tensors.items()},
    "peft in training": lambda tensors: {f"base_model.model.{k}".replace("_A.", "_A.default."): v for k, v in tensors.items()},
    "alpha": lambda tensors: tensors | {k.replace("lora_A.weight", "alpha"): torch.tensor(6.0) for k in tensors if "lora_A" in k},
    "kohya": kohya,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_trainers_layouts_are_taken_where_the_names_are_ours(trained, folder, layout):
    settings = json.dumps({"transformer.lora_alpha": 6}) if layout in ("ComfyUI", "peft", "peft in training") else "{}"
    changed = LAYOUTS[layout](load_file(folder / FILE))
    save_file({key: value.contiguous() for key, value in changed.items()}, folder / FILE, metadata={METADATA: settings})
    backbone = fresh()
    attach_adapter(backbone, folder)
    assert torch.allclose(picture(backbone), picture(trained), atol=1e-6)


@pytest.mark.parametrize("part", ["dora_scale", "lora_magnitude_vector"])
def test_a_dora_is_named(folder, part):
    tensors = load_file(folder / FILE)
    save_file(tensors | {f"{sorted(tensors)[0].rpartition('.lora_')[0]}.{part}": torch.ones(3)}, folder / FILE)
    with pytest.raises(WeightsError, match="is a DoRA"):
        attach_adapter(fresh(), folder)


def test_a_layout_that_is_not_ours_is_named(folder):
    tensors = {key.replace("transformer.", "diffusion_model.double_", 1): value for key, value in load_file(folder / FILE).items()}
    save_file(tensors, folder / FILE)
    with pytest.raises(WeightsError, match=r"ComfyUI's layout\), .* missing .* foreign \(diffusion_model.double_"):
        attach_adapter(fresh(), folder)


def test_an_alpha_of_its_own_is_applied_once(trained, folder):
    """Multiplied in as it is read: beside it, lora_alpha of the metadata says nothing, and a run's alpha must be the rank."""
    changed = {key: value.contiguous() for key, value in LAYOUTS["alpha"](load_file(folder / FILE)).items()}
    save_file(changed, folder / FILE, metadata={METADATA: json.dumps({"transformer.lora_alpha": 6})})
    check_start(folder, 3, 3)
    with pytest.raises(WeightsError, match="has rank 3 and alpha 3, the run 3 and 6; use --rank 3 --lora-alpha 3"):
        check_start(folder, 3, 6)
    backbone = fresh()
    attach_adapter(backbone, folder)
    assert torch.allclose(picture(backbone), picture(trained), atol=1e-6)
