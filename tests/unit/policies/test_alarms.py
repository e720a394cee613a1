"""Alarms of a run that goes wrong: planted hacks that their reward pays for, honest retouching, and the way back."""

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from policies.retoucher import evaluate
from policies.retoucher import run as run_module
from policies.retoucher.alarms import SERIOUS, Alarms
from policies.retoucher.evaluate import EvaluationSet, measure
from policies.retoucher.main import align_retoucher
from policies.retoucher.model.backbone import Condition
from policies.retoucher.trainer import Trainer
from reward_models.reward_set import build_rewards

ROW, COLUMN = torch.arange(128)[:, None], torch.arange(128)
LINES = ((ROW % 4 == 0) | (COLUMN % 4 == 0)).float() * 2 - 1
HACKS = {
    "brightening": lambda pixels, step: (pixels + 0.02 * step).clamp(0, 1),
    "grid": lambda pixels, step: (pixels + 0.01 * step * LINES).clamp(0, 1),
    "over-smoothing": lambda pixels, step: gaussian_blur(pixels, [13, 13], [0.4 * step]) if step else pixels,
    "noise": lambda pixels, step: pixels + 0.01 * step * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(step)),
}
"""What a policy drifts to, a little more at each validation."""


@pytest.fixture(scope="module")
def data(source):
    batch = source.load("validation", [0, 1, 2])
    nothing = Condition(torch.zeros(3, 1, 1), torch.zeros(3, 3, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1))
    return EvaluationSet(batch, nothing, torch.zeros(3, 1, 1))


def alarms_of(data, drift, validations=6):
    """The serious alarms of a run whose validation pictures drift, rewarded for it."""
    alarms, rewards, photos = Alarms(), build_rewards(("texture",), (), "product"), data.batch.photos
    start = photos.source + 0.3 * (photos.clean - photos.source)  # somewhere on an honest way
    for step in range(validations):
        means = measure(drift(start, step), data, rewards).means() | {"reward": 0.5 + 0.02 * step}
        alarms.after_validation(step, means, rollout_reward=None, ode_reward=None)
    return [alarm for alarm in alarms.raised if alarm.name in SERIOUS], alarms.sound


@pytest.mark.parametrize("hack", HACKS)
def test_a_planted_hack_is_told_within_three_validations(data, hack):
    raised, sound = alarms_of(data, HACKS[hack], 4)
    assert raised and raised[0].step <= 3 and sound < raised[0].step, raised
    assert hack == "brightening" or "collapse" in {alarm.name for alarm in raised if alarm.step <= 3}, raised


@pytest.mark.parametrize("pace", [0.03, 0.14])
def test_honest_retouching_is_not(data, pace):
    """Not even up to the whole anchor, which has three times the grain of where it starts."""
    photos = data.batch.photos
    assert alarms_of(data, lambda pixels, step: pixels + pace * step * (photos.clean - photos.source)) == ([], 5)


def test_one_candidate_for_all_is_told_at_once(make_trainer, config):
    trainer = make_trainer(config)
    decode = trainer.backbone.decode
    trainer.backbone.decode = lambda *given: (pictures := decode(*given))[:1].expand_as(pictures).clone()
    spread = trainer.train_step().spread
    (alarm,) = trainer.alarms.after_step(1, spread=spread, ratio_deviation=0.0, on_policy=True, clip_range=1e-4)
    assert alarm.name == "spread"


def test_steps_drawn_late_are_no_loss_of_diversity():
    """As in honest runs of the demo: how far candidates are apart depends on the one step that is drawn, here the last one often."""
    alarms, seen = Alarms(), [0.007, 0.0066, 0.007, 0.0066, 0.0066, *[0.0015] * 6, 0.0066, *[0.0015] * 9] * 2
    quiet = {"spread": 0.01, "ratio_deviation": 0.0, "on_policy": True, "clip_range": 1e-4}
    assert not any(alarms.after_step(step, diversity=value, **quiet) for step, value in enumerate(seen))


@pytest.mark.slow
def test_a_run_stops_at_an_alarm_and_goes_back_to_before_it(tmp_path, monkeypatch, capsys):
    """The policy's pictures get brighter after its second step, and its only reward pays for that."""
    step, sample, build = [0], evaluate.sample_ode, run_module.build_rewards
    train_step, out = Trainer.train_step, tmp_path / "run"

    def one_more(trainer):
        step[0] = trainer.progress.step + 1
        return train_step(trainer)

    def paid(*given, **more):
        rewards = build(*given, **more)
        rewards.functions["texture"] = lambda candidates, photos: (100 * (candidates - photos.source).mean((1, 2, 3))).sigmoid()
        return rewards

    def start(*more):
        options = "--photos-per-step 1 --group-size 2 --max-train-steps 5 --validation-photos 1 --held-out-photos 2 --num-steps 2 "
        options += "--segments 1 --validation-steps 1 --checkpointing-steps 1 --checkpoints-total-limit 9 --rewards texture --on-alarm stop"
        monkeypatch.setattr("sys.argv", ["align-retoucher", *options.split(), "--output-dir", str(out), *more])
        with pytest.raises(SystemExit) as ended:
            align_retoucher()
        return ended.value.code or 0, capsys.readouterr().err

    with monkeypatch.context() as planted:
        planted.setattr(Trainer, "train_step", one_more)
        planted.setattr(run_module, "build_rewards", paid)
        planted.setattr(evaluate, "sample_ode", lambda *given: HACKS["brightening"](sample(*given), max(step[0] - 2, 0)))
        code, said = start()
    assert code == 2 and "hacking: reward rises while tone_error grew" in said, said
    good = out / "checkpoint-2"
    assert f"go back with --resume-from-checkpoint {good}" in said.replace("\n", ""), said
    code, said = start("--resume-from-checkpoint", str(good), "--on-alarm", "say")
    assert code == 0 and (out / "summary.json").is_file(), said
