"""What only a CUDA device can show of the retoucher: its rollouts and gradients are the CPU's within rounding, in bfloat16, too."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from rollouts import roll_out

from policies.retoucher.backbones import load_backbone, tiny
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.architectures import meta_backbone, stand_in_condition
from policies.retoucher.photos import SyntheticSource
from policies.retoucher.trainer import FIRST_RATIO, Trainer
from policies.retoucher.update import accumulate_gradients
from reward_models.reward_set import build_rewards
from tools.embedded import tiny_kontext

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
CONFIG = RetoucherConfig.of(num_steps=4, photos_per_step=1, group_size=4, micro_batch=4, rank=4)
ADVANTAGES = torch.tensor([1.0, -0.5, 0.5, -1.0])


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """TF32, which convolutions use by default, has 10 bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def trainer_of(backbone, config) -> Trainer:
    """A policy with a LoRA that does something: the same numbers on every device."""
    rewards = build_rewards(("texture",), (), "product")
    trainer = Trainer(config, backbone, SyntheticSource(128, config.device), rewards, Console(quiet=True))
    generator = torch.Generator().manual_seed(1)
    trainer.use({name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in trainer.adapter.items()})
    return trainer


def embedded(device: str):
    return tiny.wrap(tiny_kontext.build_pipeline(0).to(device))


def stepped(trainer, condition, config, *, bf16=False):
    """A rollout, the figures of its update, and the gradients, all on the CPU."""
    backbone = trainer.backbone
    scheduler = config.scheduler(trainer.sigmas, 0)
    noise = {"group_size": config.group_size, "shared_noise": True, "generator": torch.Generator().manual_seed(3)}
    rollout = roll_out(backbone, condition, condition.reference.flip(1), scheduler, **noise, batch=4, bf16=bf16)
    figures = accumulate_gradients(
        backbone, condition, rollout, ADVANTAGES, torch.arange(1), config.objective, micro_batch=config.micro_batch
    )
    return rollout, figures, {name: p.grad.cpu() for name, p in trainer.adapter.items()}


def test_a_group_is_the_one_of_the_cpu():
    given = stand_in_condition(embedded("cpu"), 1)
    results = []
    for device in ("cpu", DEVICE):
        config = replace(CONFIG, device=device)
        parts = {name: getattr(given, name).to(device) for name in ("reference", "residual", "prompt", "pooled")}
        condition = replace(given, **parts)
        results.append(stepped(trainer_of(embedded(device), config), condition, config))
    (here, here_figures, ours), (there, there_figures, theirs) = results
    assert torch.allclose(here.latents, there.latents.cpu(), atol=1e-3)
    assert there.evaluations == here.evaluations and there_figures.loss == pytest.approx(here_figures.loss, abs=1e-5)
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-2 * gradient.norm() + 1e-9, name


def test_pictures_are_encoded_and_decoded_as_on_the_cpu():
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    latents, pictures = [], []
    for device in ("cpu", DEVICE):
        backbone = embedded(device)
        condition = backbone.condition(images, "retouch")
        latents.append(condition.reference.cpu())
        pictures.append(backbone.decode(condition.reference, condition).cpu())
    assert torch.allclose(*latents, atol=1e-3) and torch.allclose(*pictures, atol=1e-3)


def test_bfloat16_rollouts_leave_the_ratio_exact():
    config = replace(CONFIG, device=DEVICE)
    trainer = trainer_of(embedded(DEVICE), config)
    condition = stand_in_condition(trainer.backbone, 1)
    exact, _, _ = stepped(trainer, condition, config)
    fast, figures, _ = stepped(trainer, condition, config, bf16=True)
    assert not torch.equal(fast.latents, exact.latents)
    assert (fast.latents - exact.latents).norm() < 0.05 * exact.latents.norm()
    assert figures.ratio_deviation < 1e-4


def test_a_bfloat16_base_with_checkpointing_trains_a_float32_lora():
    config = replace(CONFIG, device=DEVICE, gradient_checkpointing=True)
    trainer = trainer_of(meta_backbone("flux_kontext", str(tiny.EMBEDDED), 64, device=DEVICE), config)
    base = trainer.backbone.transformer.proj_out.weight
    assert base.dtype == torch.bfloat16 and base.device.type == DEVICE
    assert {(p.dtype, p.device.type) for p in trainer.adapter.values()} == {(torch.float32, DEVICE)}
    condition = stand_in_condition(trainer.backbone, 1)
    before = trainer.current()
    rollout, figures, gradients = stepped(trainer, condition, config)
    assert figures.ratio_deviation < FIRST_RATIO and rollout.latents.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    trainer.optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in trainer.current().items())


def test_text_encoders_come_to_the_device_only_to_encode():
    images = torch.rand(1, 3, 128, 128)
    given = ("flux_kontext", str(tiny.EMBEDDED), 128, DEVICE)
    resident, moved = load_backbone(*given), load_backbone(*given, offload_text_encoder=True)
    expected, found = (backbone.condition(images, "retouch") for backbone in (resident, moved))
    assert torch.equal(expected.prompt, found.prompt) and found.prompt.device.type == DEVICE
    assert {p.device.type for encoder in moved.text_encoders for p in encoder.parameters()} == {"cpu"}
