"""`align-retoucher --device cuda` on a device that is none (`pretend_cuda`): what is left on the CPU fails here as it would on a GPU.

The device computes on the CPU, so that a step on it gives the CPU's own numbers: the noise of a seed is the same, too.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_klein
import tiny_qwen
import torch
from pretend_cuda import PLACES, pretend_cuda, waits
from rich.console import Console

from policies.retoucher.backbones import tiny
from policies.retoucher.backbones.pipeline import PipelineBackbone
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.evaluate import evaluation_set
from policies.retoucher.model.encoding_cache import CachedBackbone
from policies.retoucher.photos import SyntheticSource
from policies.retoucher.retouch.faces import Faces, apply_controls, take_apart
from policies.retoucher.retouch.options import Controls
from policies.retoucher.retouch.rollouts import open_rollouts
from policies.retoucher.rollout import noise_of_groups, roll_out
from policies.retoucher.trainer import Trainer
from policies.retoucher.update import accumulate_forward_gradients, accumulate_gradients, forward_noise
from preference_data.generators import GeneratorOptions, open_subject
from preference_data.people.photos import PhotoRow
from reward_models.photos import Photos
from reward_models.reward_set import build_rewards
from reward_models.verifiable import REWARDS
from tools.embedded import tiny_kontext

BUILDS = {
    "flux_kontext": lambda: tiny.wrap(tiny_kontext.build_pipeline(0)),
    "flux2_klein": lambda: tiny_klein.wrap(tiny_klein.build_pipeline()),
    "qwen_image_edit": lambda: tiny_qwen.wrap(tiny_qwen.build_pipeline()),
}
SIZES = {"num_steps": 3, "photos_per_step": 1, "group_size": 2, "rank": 2, "eval_num_steps": 1, "validation_photos": 1}
CONFIG = RetoucherConfig.of(**SIZES, kl_beta=0.1, credit="local", ema_decay=0.5, rewards=tuple(REWARDS))


def trainer_on(device: str, build, config: RetoucherConfig = CONFIG) -> Trainer:
    """As `align-retoucher` makes one."""
    config, backbone = replace(config, device=device), build()
    if device != "cpu":
        for part in (backbone.transformer, backbone.pipeline.vae, *backbone.text_encoders):
            part.to(device)
    rewards = build_rewards(config.all_rewards, (), config.combine, device)
    return Trainer(config, CachedBackbone(backbone), SyntheticSource(backbone.resolution, device), rewards, Console(quiet=True))


def resumed_on(device: str, build, config: RetoucherConfig = CONFIG) -> Trainer:
    """The same, from a checkpoint, which is read onto the CPU."""
    trainer = trainer_on(device, build, config)
    saved = {name: {key: value.cpu() for key, value in some.items()} for name, some in trainer.tensors().items()}
    trainer.restore(saved, trainer.state())
    return trainer


def run(device: str, build, config: RetoucherConfig = CONFIG) -> tuple[Trainer, dict[str, float]]:
    """As resumed, an evaluation, a training step and another evaluation; the trainer and what was measured."""
    trainer = resumed_on(device, build, config)
    photos = evaluation_set(trainer.backbone, trainer.source, "validation", 1, prompt=CONFIG.prompt, noise_seed=7)
    before, result, ode = trainer.validate(photos), trainer.train_step(), trainer.ode_reward([0])
    kept = [*vars(photos.batch.photos).values(), photos.condition.reference, photos.condition.residual, photos.noise]
    assert {part.device.type for part in kept} == {"cpu"} and photos.device.type == device, "photos wait in main memory for an evaluation"
    assert before.pictures.device.type == "cpu" and result.gradient_norm > 0
    rewards = {f"reward {row}": float(value) for row, value in enumerate(result.rewards)}
    return trainer, before.means() | rewards | {"norm": result.gradient_norm, "kl": result.figures[0].kl, "ode": ode}


@pytest.mark.parametrize(("place", "times"), PLACES)
@pytest.mark.parametrize("name", BUILDS)
def test_a_step_on_the_device_is_the_cpus(name, place, times):
    _, expected = run("cpu", BUILDS[name])
    with place():
        there, found = run("cuda", BUILDS[name])
        assert {p.device.type for p in there.adapter.values()} == {"cuda"}
        assert found == pytest.approx(expected, rel=1e-3 * times, abs=1e-5 * times, nan_ok=True)
        assert all(value.isfinite().all() for value in there.adapter.values())
        tensors = there.tensors()["adapter"]
        assert {value.device.type for value in tensors.values()} == {"cuda"}


METHODS = {
    "dppo": {"loss": "dppo"},
    "neighbor": {"loss": "neighbor", "dpg": False, "neighbor_anchors": 1},
    "nft": {"loss": "nft", "dpg": False, "shared_noise": False, "anchor_weight": 0.5, "old_policy_decay": 0.5},
}


@pytest.mark.parametrize(("place", "times"), PLACES)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_each_method_on_the_device_is_the_cpus(method, place, times):
    def step(device):
        trainer = resumed_on(device, BUILDS["flux_kontext"], replace(CONFIG, **METHODS[method], num_steps=2, segments=1))
        result = trainer.train_step()
        return {"norm": result.gradient_norm, "kl": result.figures[0].kl} | dict(enumerate(result.rewards.tolist()))

    expected = step("cpu")
    with place():
        found = step("cuda")
    assert found == pytest.approx(expected, rel=1e-3 * times, abs=1e-5 * times, nan_ok=True)


def waited(work) -> list[str]:
    """What the CPU waited for."""
    before = len(waits)
    work()
    return waits[before:]


def test_the_cpu_waits_for_the_device_neither_at_a_step_nor_at_a_part_of_an_update():
    """However many there are: a GPU that is waited for has nothing in its queue. What diffusers' transformers do inside is theirs."""
    config, waits_of = replace(CONFIG, segments=1, credit="photo"), {}
    with pretend_cuda():
        trainer = trainer_on("cuda", BUILDS["flux_kontext"], config)
        backbone = trainer.backbone
        photos = trainer.source.load("train", [0])
        condition, anchors = backbone.condition(photos.photos.source, config.prompt), backbone.encode(photos.anchors)
        for steps in (2, 4):
            scheduler, rollouts = config.scheduler(backbone.sigmas(steps), 0), []
            noise = noise_of_groups(backbone, scheduler.drawn_steps, [0], group_size=2, shared_noise=steps == 2, seed=0, iteration=0)
            taken = partial(roll_out, backbone, condition, anchors, scheduler, noise, batch=2)
            waits_of[steps] = waited(lambda taken=taken, rollouts=rollouts: rollouts.append(taken()))
            given = (backbone, condition, rollouts[0], torch.tensor([1.0, -1.0]), torch.arange(1))
            for size in (1, 2):
                learn = partial(accumulate_gradients, *given, config.objective, micro_batch=size)
                waits_of[steps, size] = waited(learn)
                drawn = forward_noise(backbone, backbone.sigmas(steps), 2, [0], seed=0, iteration=0)
                learn = partial(accumulate_forward_gradients, *given, config.objective, noise=drawn, micro_batch=size)
                waits_of["nft", steps, size] = waited(learn)
    assert max(len(waits_of[steps]) for steps in (2, 4)) <= 3, "indices go there, once a rollout"
    for key in [(2,), (4,), ("nft", 2), ("nft", 4)]:
        assert waits_of[*key, 1] == waits_of[*key, 2]


def left_behind(monkeypatch, what: str) -> None:
    """Leave one thing of a step on the CPU."""
    if what in ("noise", "encode"):
        make = getattr(PipelineBackbone, what)
        monkeypatch.setattr(PipelineBackbone, what, lambda self, *given: make(self, *given).cpu())
    elif what == "photos":
        build = Photos.build
        monkeypatch.setattr(Photos, "build", lambda source, meshes, **known: build(source.cpu(), meshes.cpu(), **_on_cpu(known)))
    else:
        monkeypatch.setattr(Trainer, "__init__", _leaving_an_adapter(Trainer.__init__))


def _on_cpu(tensors):
    return {name: value.cpu() for name, value in tensors.items()}


def _leaving_an_adapter(make):
    def init(self, *given, **more):
        make(self, *given, **more)
        module = next(m for m in self.backbone.transformer.modules() if hasattr(m, "lora_A"))
        module.lora_A["default"].to("cpu")

    return init


@pytest.mark.parametrize("what", ["noise", "encode", "photos", "an adapter"])
def test_one_tensor_left_on_the_cpu_fails(monkeypatch, what):
    left_behind(monkeypatch, what)
    with pretend_cuda(), pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        run("cuda", BUILDS["flux_kontext"])


def test_retouching_takes_and_gives_pictures_of_the_cpu():
    case = SyntheticSource(128).load("validation", [0]).photos
    pixels, faces = case.source[0], Faces([torch.cat([case.meshes[0], torch.zeros(468, 1)], 1)], ())
    backbone = BUILDS["flux_kontext"]()

    def retouched():
        return apply_controls(pixels, take_apart(pixels, faces, backbone, prompt="", num_steps=1, seed=0), Controls(tone=1.0, strength=0.3))

    expected = retouched()
    with pretend_cuda():
        backbone.pipeline.to("cuda")
        found = retouched()
        assert found.faces == 1 and found.pixels.device.type == "cpu" and torch.allclose(found.pixels, expected.pixels, atol=1e-4)


def test_rollouts_for_pairs_are_the_cpus():
    subject, _ = open_subject(PhotoRow("x", "train", "", {}, None, None, 3), 128)
    generator = open_rollouts("2", GeneratorOptions(CONFIG.prompt, 1, "cpu"))
    expected = generator.candidates(subject, 2, 0)
    with pretend_cuda():
        generator.backbone.pipeline.to("cuda")
        found = generator.candidates(subject, 2, 0)
        for one, other in zip(found, expected, strict=True):
            assert one.pixels.device.type == "cpu" and torch.allclose(one.pixels, other.pixels, atol=2 / 255)
            assert one.truth == pytest.approx(other.truth, abs=0.01)


def test_what_comes_back_to_the_cpu_has_a_reason():
    """In rollout, update and rewards every line that moves something there says why."""
    assert not [line for line in lines_with(r"\.cpu\(\)|\.to\(.cpu.\)") if "  # " not in line]


def test_what_is_drawn_on_the_cpu_is_drawn_by_a_seed():
    """By a generator of its own: a seed's noise is then the same on each device. What a plan draws has no data."""
    drawn = [line for line in lines_with(r"torch\.(Generator|rand\w*|normal|multinomial|bernoulli)\(") if "architectures.py" not in line]
    assert len(drawn) > 9 and not [line for line in drawn if "generator=" not in line and ".manual_seed(" not in line]


def lines_with(words: str) -> list[str]:
    """Lines of the rollout, update and reward path in which a pattern is found, each after its file."""
    root = Path(__file__).parents[3]
    files = [path for package in ("policies/retoucher", "reward_models") for path in (root / package).rglob("*.py")]
    return [f"{path}: {line}" for path in files for line in path.read_text(encoding="utf-8").splitlines() if re.search(words, line)]
