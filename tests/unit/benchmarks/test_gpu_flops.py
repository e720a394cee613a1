"""Counted floating-point operations against sums over the layers, and the table of devices."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from policies.retoucher.backbones.tiny import EMBEDDED
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.architectures import meta_backbone, stand_in_condition
from portraitkit.memory.vlm_trace import Load, hidden_states
from portraitkit.vlm.model import meta_model
from portraitkit.vlm.trainer_options import TrainerOptions
from tools.bench.gpu.case import Row
from tools.bench.gpu.device import PEAKS, peak_flops
from tools.bench.gpu.flops import retoucher_flops, vlm_flops
from tools.bench.gpu.table import cells


def in_linear_layers(model: nn.Module, run) -> int:
    """Products and sums in the linear layers that a forward passes, by their shapes."""
    seen: list[int] = []

    def note(module: nn.Linear, given, out) -> None:
        seen.append(2 * given[0].numel() * module.out_features)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return sum(seen)


def by_layers(config: RetoucherConfig) -> int:
    """Linear layers, LoRA's among them, and attention's two products in each block."""
    backbone = meta_backbone(config.backbone, config.model, config.resolution)
    backbone.transformer.add_adapter(LoraConfig(r=config.rank, target_modules=backbone.lora_targets))
    condition = stand_in_condition(backbone, 1)
    linear = in_linear_layers(backbone.transformer, lambda: backbone.velocity(condition.reference, 0.5, condition))
    made = backbone.transformer.config
    tokens = 2 * backbone.side**2 + backbone.text_tokens
    width = made.num_attention_heads * made.attention_head_dim
    return linear + (made.num_layers + made.num_single_layers) * 4 * tokens**2 * width


@pytest.mark.parametrize(
    "config",
    [
        RetoucherConfig.of(backbone="flux_kontext", model=str(EMBEDDED), resolution=64, rank=4),
        pytest.param(RetoucherConfig.of(backbone="flux_kontext", resolution=512, rank=32), marks=pytest.mark.slow),
    ],
)
def test_a_picture_through_the_retoucher(config):
    flops = retoucher_flops(config)
    assert flops.forward == pytest.approx(by_layers(config), rel=1e-3)
    # A frozen base needs gradients of its inputs, not of its weights: two forwards in all, and attention's backward.
    assert 1.9 * flops.forward < flops.update < 3 * flops.forward


def test_an_answer_of_a_language_model():
    options = TrainerOptions(rank=4)
    load = Load(rows=1, pictures=1, picture_tokens=16, words=20, answer=9)
    flops = vlm_flops("embedded", options, load)
    model = meta_model("embedded")
    targets = list(options.lora_targets)
    base = get_peft_model(model, LoraConfig(r=4, target_modules=targets, exclude_modules=".*visual.*")).get_base_model()
    text = model.config.get_text_config()
    head = 2 * text.hidden_size * text.vocab_size
    prompt = in_linear_layers(base, lambda: hidden_states(base, load, cache=True))
    tower = in_linear_layers(base.model.visual, lambda: hidden_states(base, load, cache=True))
    each = (prompt - tower) / load.prompt
    expected = prompt + (load.answer - 1) * each + load.answer * head
    assert flops.forward == pytest.approx(expected, rel=0.1)  # attention and the patches' embedding come on top
    assert flops.forward > expected
    assert flops.update > flops.forward


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A10G", None),
        ("CPU", None),
    ],
)
def test_peaks_of_devices(name, tera):
    assert peak_flops(name) == (None if tera is None else pytest.approx(tera * 1e12))


def test_no_line_of_the_table_hides_a_later_one():
    for place, (name, _) in enumerate(PEAKS):
        assert not any(set(before.split()) <= set(name.split()) for before, _ in PEAKS[:place])


def test_utilisation_is_a_share_of_the_peak():
    row = Row("m", "s", "k", "pictures", seconds=2.0, evaluations=10, flops=4e12, peak=2**31, planned=2**30)
    assert row.utilisation(8e12) == pytest.approx(0.25) and row.utilisation(None) is None
    assert cells(row, 8e12)[1:] == ("2.00", "10 pictures", "5.0", "25.0%", "2.0", "1.0", "2.00")
