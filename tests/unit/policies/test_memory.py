"""Large models in little memory: published LoRA modules, foreign LoRA files, quantised bases, 8-bit optimiser state."""

import builtins
import re
from dataclasses import replace

import pytest
import tiny_klein
import tiny_qwen
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel, QwenImageTransformer2DModel
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn

from policies.retoucher.backbones import flux_kontext, load_backbone, qwen_image_edit, tiny
from policies.retoucher.model import loading
from policies.retoucher.model.adapter import check_start
from policies.retoucher.model.architectures import meta_backbone, parts_of
from policies.retoucher.model.loading import load_pipeline, loading_options
from policies.retoucher.model.training import make_optimizer
from policies.retoucher.retouch.options import RetouchConfig
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.runs.checkpoint import flatten_optimizer, restore_optimizer
from tools.embedded import tiny_kontext


def targeted(transformer: nn.Module, targets: list[str]) -> list[str]:
    """Modules that peft itself adapts."""
    transformer.add_adapter(LoraConfig(r=1, target_modules=targets))
    return sorted(name.removesuffix(".lora_A.default") for name, _ in transformer.named_modules() if name.endswith(".lora_A.default"))


def test_kontext_at_real_size_has_the_published_342_modules():
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(11.9e9, rel=0.01)
    names = targeted(transformer, flux_kontext.LORA_TARGETS)
    assert len(names) == 342
    double = [name for name in names if name.startswith("transformer_blocks.")]
    single = [name for name in names if name.startswith("single_transformer_blocks.")]
    assert (len(double), len(single)) == (19 * 12, 38 * 3)


def test_qwen_at_real_size_has_twelve_modules_a_block():
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel()
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(20.4e9, rel=0.01)
    assert len(targeted(transformer, qwen_image_edit.LORA_TARGETS)) == 60 * 12


def test_klein_at_real_size_has_the_published_parameters_and_a_hundred_modules():
    backbone = meta_backbone("flux2_klein", None, None)
    count = {name: sum(p.numel() for part in parts for p in part.parameters()) for name, parts in parts_of(backbone).items()}
    assert count["transformer"] == pytest.approx(3.9e9, rel=0.01) and count["text encoders"] == pytest.approx(4.02e9, rel=0.01)
    names = targeted(backbone.transformer, backbone.lora_targets)
    assert len(names) == 5 * 12 + 20 * 2 and len([name for name in names if name.startswith("single_")]) == 20 * 2


def kontext() -> flux_kontext.KontextBackbone:
    """The published modules on the tiny transformer: 12 a double block, 3 a single one."""
    backbone = tiny.wrap(tiny_kontext.build_pipeline(0))
    backbone.lora_targets = flux_kontext.LORA_TARGETS
    return backbone


@pytest.fixture
def released(tmp_path):
    """A LoRA as others release it: rank 32, diffusers' keys, another file name, bf16, no word about alpha."""
    shapes = {name: module for name, module in kontext().transformer.named_modules() if isinstance(module, nn.Linear)}
    pattern = re.compile(
        r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.attn\.to_[qkv]"
    )
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for name, module in shapes.items():
        if pattern.fullmatch(name):
            tensors[f"transformer.{name}.lora_A.weight"] = 0.1 * torch.randn(32, module.in_features, generator=generator)
            tensors[f"transformer.{name}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, 32, generator=generator)
    assert len(tensors) == 2 * (12 + 2 * 3)
    path = tmp_path / "beautify_kontext.safetensors"
    save_file({name: value.bfloat16() for name, value in tensors.items()}, path)
    return path


def test_a_released_lora_is_a_start(make_trainer, config, released, monkeypatch):
    monkeypatch.setattr(tiny, "wrap", lambda pipeline, wrap=tiny.wrap: with_published_targets(wrap(pipeline)))
    check_start(released, 32, 32)
    trainer = make_trainer(config, rank=32, lora_alpha=32, init_adapter=str(released))
    ours = picture(trainer.backbone)
    stock = kontext()
    stock.pipeline.load_lora_weights(str(released.parent), weight_name=released.name)
    assert torch.allclose(ours, picture(stock), atol=1e-5)
    assert not torch.allclose(ours, picture(kontext()), atol=1e-3)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.adapter.values())


def with_published_targets(backbone):
    backbone.lora_targets = flux_kontext.LORA_TARGETS
    return backbone


def picture(backbone) -> torch.Tensor:
    images = torch.rand(1, 3, backbone.resolution, backbone.resolution, generator=torch.Generator().manual_seed(2))
    condition = backbone.condition(images, "retouch")
    with torch.no_grad():
        return backbone.velocity(backbone.noise(1, torch.Generator().manual_seed(3)), 0.8, condition)


def test_a_start_of_another_rank_or_scale_is_refused(released):
    with pytest.raises(WeightsError, match="has rank 32 and alpha 32, the run 16 and 16; use --rank 32 --lora-alpha 32"):
        check_start(released, 16, 16)
    with pytest.raises(WeightsError, match="use --rank 32 --lora-alpha 32"):
        check_start(released, 32, 64)
    with pytest.raises(WeightsError, match="no LoRA there"):
        check_start(released.parent, 32, 32)


BUILDS = {
    "kontext": lambda: tiny.wrap(tiny_kontext.build_pipeline(0)),
    "klein": lambda: tiny_klein.wrap(tiny_klein.build_pipeline()),
    "qwen": lambda: tiny_qwen.wrap(tiny_qwen.build_pipeline()),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=list(BUILDS))
def test_activation_checkpointing_gives_the_same_gradients(build):
    from policies.retoucher.model.training import prepare_training

    gradients = []
    for checkpointing in (False, True):
        backbone = build()
        torch.manual_seed(0)
        backbone.transformer.add_adapter(LoraConfig(r=2, target_modules=backbone.lora_targets, init_lora_weights=False))
        prepare_training(backbone.transformer, gradient_checkpointing=checkpointing)
        assert backbone.transformer.is_gradient_checkpointing == checkpointing
        images = torch.rand(1, 3, backbone.resolution, backbone.resolution, generator=torch.Generator().manual_seed(2))
        noise = backbone.noise(1, torch.Generator().manual_seed(3))
        backbone.velocity(noise, 0.6, backbone.condition(images, "retouch")).square().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.transformer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_a_backbone_whose_transformer_cannot_checkpoint_says_so():
    from policies.retoucher.model.training import prepare_training

    with pytest.raises(ConfigError, match="--gradient-checkpointing: this backbone's transformer cannot"):
        prepare_training(nn.Linear(2, 2), gradient_checkpointing=True)


@pytest.fixture
def saved(tmp_path):
    """A pipeline of the embedded make in a folder."""
    tiny_kontext.build_pipeline(0).save_pretrained(tmp_path / "kontext")
    return str(tmp_path / "kontext")


def test_a_kontext_folder_loads_in_bf16_and_trains_in_float32(saved, config, source):
    from rich.console import Console

    from policies.retoucher.trainer import Trainer
    from reward_models.reward_set import build_rewards

    backbone = load_backbone("flux_kontext", saved, 128, "cpu", guidance=3.0, vae_tiling=True, offload_text_encoder=True)
    assert backbone.transformer.dtype == torch.bfloat16 and backbone.pipeline.vae.use_tiling and backbone.guidance == 3.0
    backbone.text_tokens = tiny.TEXT_TOKENS  # in place of 512, which take long in bf16 on CPUs that have none
    rewards = build_rewards(("texture",), (), "product")
    settings = replace(config, gradient_checkpointing=True, rewards=("texture",), group_size=2, num_steps=3)
    trainer = Trainer(settings, backbone, source, rewards, Console(quiet=True))
    result = trainer.train_step()
    assert {p.dtype for p in trainer.adapter.values()} == {torch.float32}
    assert picture(backbone).dtype == torch.float32
    assert result.gradient_norm > 0 and result.figures[0].ratio_deviation < 1e-2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_quantised_base_stays_frozen_and_lora_learns(saved, device, monkeypatch):
    """diffusers quantises on GPUs only, bitsandbytes itself also on the CPU: there diffusers' check is passed by.

    So are bitsandbytes' packed kernels, whose inputs must be 64 wide; the tiny text embeddings are 16.
    """
    pytest.importorskip("bitsandbytes")
    if device == "cpu":
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
        monkeypatch.setattr(loading, "has_accelerator", lambda: True)
        monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda self, *args, **more: None)
        monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda self, device_map: {"": "cpu"})
    whole = load_backbone("flux_kontext", saved, 128, device)
    small = load_backbone("flux_kontext", saved, 128, device, quantize="nf4")
    whole.text_tokens = small.text_tokens = tiny.TEXT_TOKENS
    kinds = {type(module).__name__ for module in small.transformer.modules()}
    assert "Linear4bit" in kinds
    assert small.pipeline.vae.dtype == torch.bfloat16
    bits = sum(p.numel() * p.element_size() for p in small.transformer.parameters())
    assert bits < 0.4 * sum(p.numel() * p.element_size() for p in whole.transformer.parameters())
    a, b = picture(whole), picture(small)
    assert float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.95 and not torch.equal(a, b)
    small.transformer.add_adapter(LoraConfig(r=2, target_modules=small.lora_targets))
    images = torch.rand(1, 3, 128, 128)
    small.velocity(small.noise(1, torch.Generator()), 0.6, small.condition(images, "a")).sum().backward()
    learnt = {name for name, p in small.transformer.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learnt and all("lora_B" in name for name in learnt)


def test_quantising_without_an_accelerator_is_one_clear_line(monkeypatch, saved):
    monkeypatch.setattr(loading, "has_accelerator", lambda: False)
    with pytest.raises(ConfigError, match="--quantize nf4: diffusers quantises on a GPU only, and there is none here"):
        load_backbone("flux_kontext", saved, 128, "cpu", quantize="nf4")


def test_missing_bitsandbytes_is_one_clear_line(monkeypatch, saved):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "bitsandbytes":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="--optimizer adamw_8bit: needs bitsandbytes, which is not installed; pip install bitsandbytes"):
        make_optimizer("adamw_8bit", [nn.Parameter(torch.zeros(2))], learning_rate=1.0, weight_decay=0.0)
    with pytest.raises(ConfigError, match="--quantize nf4: needs bitsandbytes.* or use --quantize none"):
        load_backbone("flux_kontext", saved, 128, "cpu", quantize="nf4")


def test_the_8_bit_optimiser_learns_and_goes_on_from_a_checkpoint():
    pytest.importorskip("bitsandbytes")

    def setting():
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(64, 128))
        return weight, make_optimizer("adamw_8bit", [weight], learning_rate=0.05, weight_decay=0.0)

    def learn(weight, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()

    whole, optimizer = setting()
    before = float(whole.detach().square().sum())
    learn(whole, optimizer, 20)
    assert float(whole.detach().square().sum()) < 0.5 * before
    state = flatten_optimizer(optimizer)
    assert any(value.dtype == torch.uint8 for value in state.values())
    again, second = setting()
    with torch.no_grad():
        again.copy_(whole)
    restore_optimizer(second, state)
    learn(whole, optimizer, 3)
    learn(again, second, 3)
    assert torch.equal(whole, again)


def test_what_a_backbone_does_not_know_is_refused(saved):
    with pytest.raises(ConfigError, match="--quantize nf4: --backbone tiny has no such option"):
        load_backbone("tiny", None, None, "cpu", quantize="nf4")
    with pytest.raises(ConfigError, match="--resolution 100: this backbone works on multiples of 16; try 96"):
        load_backbone("flux_kontext", saved, 100, "cpu")
    with pytest.raises(WeightsError, match="holds a FluxKontextPipeline, but this --backbone is made for QwenImageEditPipeline"):
        load_backbone("qwen_image_edit", saved, None, "cpu")
    with pytest.raises(WeightsError, match="no FluxKontextPipeline weights there"):
        load_pipeline(FluxKontextPipeline, "/nonexistent", "cpu")


def test_only_changed_options_reach_a_backbone(config, tmp_path):
    assert loading_options(config) == {}
    assert loading_options(replace(config, guidance=1.0, quantize="nf4")) == {"guidance": 1.0, "quantize": "nf4"}
    retouch = RetouchConfig(tmp_path / "a.png", tmp_path / "b.png", vae_tiling=True)
    assert loading_options(retouch) == {"vae_tiling": True}
    with pytest.raises(ConfigError, match="--guidance 0.5: at least 1"):
        replace(config, guidance=0.5)


@pytest.mark.parametrize(("plus", "name"), [(False, "qwen_image_edit"), (True, "qwen_image_edit_plus")])
def test_a_qwen_folder_loads_in_bf16(tmp_path, plus, name):
    tiny_qwen.build_pipeline(plus=plus).save_pretrained(tmp_path / "qwen")
    backbone = load_backbone(name, str(tmp_path / "qwen"), 64, "cpu", guidance=1.0, offload_text_encoder=True)
    assert (backbone.transformer.dtype, backbone.forwards, backbone.resolution) == (torch.bfloat16, 1, 64)
    assert picture(backbone).isfinite().all()


def test_a_klein_folder_loads_in_bf16_with_the_licence_of_its_size(tmp_path):
    pipeline = tiny_klein.build_pipeline()
    pipeline.save_pretrained(tmp_path / "klein")
    backbone = load_backbone("flux2_klein", str(tmp_path / "klein"), 64, "cpu", guidance=1.0, offload_text_encoder=True)
    assert (backbone.transformer.dtype, backbone.forwards, backbone.licence) == (torch.bfloat16, 1, "apache-2.0")
    backbone.text_layers = tiny_klein.TEXT_LAYERS
    assert picture(backbone).isfinite().all()
