"""The loop: bit-exact resume, unscorable candidates, updates that are not finite, alarms, and an adapter that stock diffusers loads."""

import json
from functools import partial

import pytest
import torch
from diffusers import FluxKontextPipeline

from policies.retoucher import trainer as trainer_module
from policies.retoucher.alarms import Alarms
from policies.retoucher.backbones import tiny
from policies.retoucher.rollout import mix
from portraitkit.errors import TrainingStopped
from portraitkit.runs.checkpoint import load_checkpoint, save_checkpoint
from tools.embedded import tiny_kontext

STOCK = {"prompt": tiny.PROMPT, "height": 128, "width": 128, "_auto_resize": False, "max_area": 128 * 128, "output_type": "pt"}
STOCK |= {"max_sequence_length": tiny.TEXT_TOKENS}
"""What the stock pipeline is asked for."""
METHODS = {
    "grpo": {},
    "dppo": {"loss": "dppo", "global_std": True},
    "neighbor": {"loss": "neighbor", "dpg": False, "neighbor_anchors": 2},
    "nft": {"loss": "nft", "dpg": False, "shared_noise": False, "old_policy_decay": 0.5, "anchor_weight": 0.5},
}


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.adapter.items()}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_trainer, config, tmp_path, method, monkeypatch):
    monkeypatch.setattr(trainer_module, "OLD_POLICY_RISE", 0.2)  # the old policy is not the policy from the second step on
    make_trainer = partial(make_trainer, ema_decay=0.5, num_steps=3, photos_per_step=1, group_size=3, **method)
    whole = make_trainer(config)
    for _ in range(3):
        whole.train_step()

    first = make_trainer(config)
    for _ in range(2):
        first.train_step()
    save_checkpoint(tmp_path, first.progress.step, first.tensors(), first.state(), limit=None)
    torch.manual_seed(999)
    second = make_trainer(config)
    checkpoint = load_checkpoint(tmp_path, "latest")
    second.restore(checkpoint.tensors, checkpoint.state)
    assert second.progress.step == 2
    second.train_step()

    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
        assert torch.equal(whole.average[name], second.average[name]), name
        assert not whole.old or torch.equal(whole.old[name], second.old[name]), name
    assert bool(whole.old) == ("old_policy_decay" in method)
    assert not whole.old or any(not torch.equal(value, whole.old[name]) for name, value in weights(whole).items())
    assert whole.progress.evaluations == second.progress.evaluations


def test_training_moves_the_adapter_and_nothing_else(make_trainer, config):
    trainer = make_trainer(config)
    frozen = {n: p.detach().clone() for n, p in trainer.backbone.transformer.named_parameters() if not p.requires_grad}
    before = weights(trainer)
    result = trainer.train_step()
    assert len(trainer.adapter) == 2 * 23  # A and B of 18 published modules, 2 x 2 of the single blocks, and the last projection
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer).items())
    for name, parameter in trainer.backbone.transformer.named_parameters():
        if name in frozen:
            assert torch.equal(frozen[name], parameter), name
    assert result.rewards.shape == (8,) and 0 <= float(result.rewards.min()) <= float(result.rewards.max()) <= 1
    assert max(figures.ratio_deviation for figures in result.figures) < 1e-6
    assert 0 < result.diversity < 0.5 and trainer.state()["diversities"] == []


def test_unscorable_candidates_are_counted_and_too_many_stop_the_run(make_trainer, config):
    trainer = make_trainer(config)
    score = trainer.rewards.functions["texture"]

    def sometimes(candidates, photos):
        values = score(candidates, photos)
        values[0] = torch.nan
        return values

    trainer.rewards.functions.clear()
    trainer.rewards.functions["texture"] = sometimes
    trainer.train_step()
    assert trainer.progress.unscorable == 2  # each group is scored on its own

    trainer.rewards.functions["texture"] = lambda candidates, photos: torch.full((len(candidates),), torch.nan)
    with pytest.raises(TrainingStopped, match="8 of 8 candidates could not be scored"):
        trainer.train_step()


def test_updates_that_are_not_finite_are_skipped_and_then_stop_the_run(make_trainer, config, monkeypatch):
    monkeypatch.setattr(trainer_module, "MOST_BAD_UPDATES", 1)
    trainer = make_trainer(config)
    poisoned = next(iter(trainer.adapter.values()))
    poisoned.register_hook(lambda grad: grad * torch.nan)
    before = weights(trainer)
    trainer.train_step()
    assert trainer.progress.skipped_updates == 1
    assert all(torch.equal(before[key], value) for key, value in weights(trainer).items())
    with pytest.raises(TrainingStopped, match="in a row were not finite"):
        trainer.train_step()


def test_the_adapter_loads_in_the_stock_pipeline_and_changes_its_pictures(make_trainer, config, tmp_path):
    trainer = make_trainer(config, keep_best=False)
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    trainer.save_adapter(tmp_path)
    pipeline = tiny_kontext.build_pipeline(0)
    pipeline.set_progress_bar_config(disable=True)
    photo = trainer.source.load("train", [0]).photos.source

    def run() -> torch.Tensor:
        return pipeline(image=photo, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **STOCK).images

    before = run()
    assert isinstance(pipeline, FluxKontextPipeline)
    pipeline.load_lora_weights(tmp_path)
    assert not torch.allclose(before, run(), atol=1e-3)


def test_the_ode_of_the_loop_is_the_stock_pipelines(make_trainer, config, source):
    from policies.retoucher.model.backbone import sample_ode

    backbone = tiny.wrap(tiny_kontext.build_pipeline(0))
    photo = source.load("train", [0]).photos.source
    condition = backbone.condition(photo, tiny.PROMPT)
    noise = backbone.noise(1, torch.Generator().manual_seed(0))
    own = sample_ode(backbone, condition, noise, 3) - condition.residual
    backbone.pipeline.set_progress_bar_config(disable=True)
    stock = backbone.pipeline(image=photo, num_inference_steps=3, latents=noise, **STOCK).images
    inside = ((own > 0) & (own < 1)).all(1, keepdim=True) & ((own + condition.residual > 0) & (own + condition.residual < 1)).all(
        1, keepdim=True
    )
    assert inside.float().mean() > 0.3
    assert (own - stock).abs()[inside.expand_as(own)].max() < 1e-3


def test_seeds_of_different_steps_do_not_collide():
    assert len({mix(seed, step) for seed in range(50) for step in range(200)}) == 10_000


def test_alarms_name_what_went_wrong_once_in_a_while():
    alarms = Alarms()
    good = {"reward": 0.5, "identity_distance": 0.1, "texture_error": 0.1, "residual_grain": 0.5, "tone_error": 0.0, "lip_dE": 0.0}
    assert alarms.after_validation(0, good, rollout_reward=None, ode_reward=None) == []
    hacked = good | {"reward": 0.7, "texture_error": 0.4}
    raised = alarms.after_validation(10, hacked, rollout_reward=0.7, ode_reward=0.4)
    assert [alarm.name for alarm in raised] == ["hacking", "sde-ode gap"]
    assert alarms.after_validation(15, hacked, rollout_reward=0.5, ode_reward=0.5) == []
    noisy = good | {"residual_grain": 1.0}
    assert [a.name for a in alarms.after_validation(20, noisy, rollout_reward=None, ode_reward=None)] == ["collapse"]
    assert [a.name for a in alarms.after_step(21, spread=0.0, ratio_deviation=0.0, on_policy=True, clip_range=1e-4)] == ["spread"]
    assert [a.name for a in alarms.after_step(22, spread=0.1, ratio_deviation=1e-3, on_policy=True, clip_range=1e-4)] == ["ratio"]
    quiet = {"spread": 0.1, "ratio_deviation": 0.0, "on_policy": True, "clip_range": 1e-4}
    found = [alarms.after_step(30 + step, diversity=0.1 if step < 15 else 0.04, **quiet) for step in range(30)]
    assert [[a.name for a in some] for some in found] == [[]] * 29 + [["diversity"]]
    assert "0.40 times" in alarms.raised[-1].message
    json.dumps([alarm.message for alarm in alarms.raised])
