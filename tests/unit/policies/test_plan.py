"""The planner of `align-retoucher` against the memory of real training steps of the embedded retoucher.

What the photos' source and the rewards hold is the host's, whatever the device: they are run outside of the counter. All else counts,
the loaded photos from the moment they are there.
"""

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from policies.retoucher import evaluate
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.dry_run import CHANGES, MORE_DEVICES, dry_run, plan_memory
from policies.retoucher.evaluate import evaluation_set
from policies.retoucher.model.architectures import meta_backbone, parts_of
from policies.retoucher.model.training import check_guidance, check_sharding
from portraitkit.config import load_config
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.memory.plan import typed
from portraitkit.memory.trace import LiveBytes, size_of, tensors_of


def uncounted(function):
    """The function, its operations not seen by the counter; what it returns is, when it is used."""

    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


def measured(make_trainer, config, monkeypatch) -> int:
    """Most bytes of live tensors in two training steps (the second has the optimiser's states) and the evaluations after them."""
    trainer = make_trainer(config)
    read, trainer.source = uncounted(trainer.source.load), copy(trainer.source)

    def load_photos(split, indices):
        batch = read(split, indices)
        for tensor in (*vars(batch.photos).values(), batch.anchors):
            live.see(tensor)
        return batch

    trainer.source.load = load_photos
    functions = {name: uncounted(function) for name, function in trainer.rewards.functions.items()}
    trainer.rewards = replace(trainer.rewards, functions=functions)
    modules = [module for some in parts_of(trainer.backbone).values() for module in some]
    held = [t for module in modules for t in tensors_of(module)] + [*trainer.average.values(), *trainer.best.values()]
    load, measures = {"prompt": config.prompt, "noise_seed": 7}, {name: uncounted(function) for name, function in evaluate.MEASURES.items()}
    monkeypatch.setattr(evaluate, "MEASURES", measures)
    with LiveBytes(held, ("cpu",)) as live:
        sizes = {"validation": config.validation_photos, "held_out": config.held_out_photos}
        sets = [evaluation_set(trainer.backbone, trainer.source, split, count, **load) for split, count in sizes.items()]
        for _ in range(2):
            trainer.train_step()
        trainer.validate(sets[0])
        both = trainer.evaluate(sets[1], None), trainer.evaluate(sets[1], trainer.chosen())
    assert len(both) == 2
    return live.peak


@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 8, "gradient_checkpointing": False, "rank": 32, "num_steps": 4, "segments": 2},
        {"group_size": 8, "gradient_checkpointing": True, "rank": 4},
        {"group_size": 6, "gradient_checkpointing": False, "micro_batch": 6, "kl_beta": 0.1},
        {"group_size": 6, "gradient_checkpointing": False, "micro_batch": 2},
        {"group_size": 2, "gradient_checkpointing": True, "held_out_photos": 34},
    ],
)
def test_the_plan_is_within_a_tenth_of_what_is_measured(make_trainer, config, monkeypatch, changes):
    config = replace(
        config, **{"validation_photos": 3, "held_out_photos": 5, "num_steps": 2, "segments": 1, "eval_num_steps": 1, **changes}
    )
    memory = plan_memory(config)
    assert memory.peak == pytest.approx(measured(make_trainer, config, monkeypatch), rel=0.1)


def test_the_embedded_parts_weigh_what_the_real_ones_do(backbone):
    for name, modules in parts_of(meta_backbone("tiny", None, None)).items():
        real = size_of(t for module in parts_of(backbone)[name] for t in tensors_of(module))
        assert size_of(t for module in modules for t in tensors_of(module)) == real


def test_a_folder_of_ones_own_counts(tmp_path):
    from tools.embedded import tiny_kontext

    tiny_kontext.build_pipeline(0).save_pretrained(tmp_path / "kontext")
    memory = plan_memory(
        RetoucherConfig.of(backbone="flux_kontext", model=str(tmp_path / "kontext"), resolution=64, group_size=2, micro_batch=2)
    )
    assert memory.parameters == sum(p.numel() for p in tiny_kontext.build_pipeline(0).transformer.parameters())
    with pytest.raises(WeightsError, match="made for QwenImageEditPipeline"):
        plan_memory(RetoucherConfig.of(backbone="qwen_image_edit", model=str(tmp_path / "kontext")))


def test_more_candidates_take_more_and_checkpointing_less():
    def peak(**changes):
        memory = plan_memory(RetoucherConfig.of(photos_per_step=1, micro_batch=64, **changes))
        return next(size for name, size in memory.phases.items() if name.startswith("update"))

    assert peak(group_size=16) > 1.7 * peak(group_size=8)
    assert peak(group_size=16, gradient_checkpointing=True) < 0.7 * peak(group_size=16)


def test_shares_of_devices():
    whole = plan_memory(RetoucherConfig.of(group_size=2))
    split = plan_memory(RetoucherConfig.of(group_size=2, plan_devices=4, sharding="fsdp2"))
    same = {name: size for name, size in whole.held.items() if name != "weights of the transformer"}  # the LoRA stays whole everywhere
    assert same == {name: size for name, size in split.held.items() if name != "weights of the transformer"}
    assert split.phases == whole.phases
    base = meta_backbone("tiny", None, None).transformer
    block = max(size_of(tensors_of(module)) for module in base.modules() if type(module).__name__.endswith("Block"))
    assert split.held["weights of the transformer"] == whole.held["weights of the transformer"] // 4 + 2 * block  # two are gathered


def test_a_judge_on_the_same_device_counts():
    from portraitkit.vlm.model import load_model
    from reward_models.judge.settings import source_of

    plain = plan_memory(RetoucherConfig.of(group_size=2))
    judged = plan_memory(RetoucherConfig.of(group_size=2, reward=("judge:embedded:win_rate",)))
    real = size_of(tensors_of(load_model(source_of("embedded"), dtype="float32", device="cpu")))
    assert judged.held["judge:embedded:win_rate, weights"] == real
    assert judged.phases["judging, 32 questions at once"] > 0
    elsewhere = plan_memory(RetoucherConfig.of(group_size=2, reward=("judge:embedded:win_rate",), reward_worker=("http://127.0.0.1:1",)))
    assert (elsewhere.held, elsewhere.phases) == (plain.held, plain.phases) and "elsewhere" in elsewhere.notes["judge:embedded:win_rate"]
    trained_later = plan_memory(RetoucherConfig.of(group_size=2, device="cuda", rewards=("judge:runs/not/there:win_rate",)))
    assert trained_later.held["judge:runs/not/there:win_rate, weights"] > 15 * 2**30
    assert "planned as Qwen/Qwen2.5-VL-7B-Instruct" in trained_later.notes["judge:runs/not/there:win_rate"]


@pytest.mark.parametrize(("photos", "of_eight"), [(4, 8), (12, 16)])
def test_what_is_proposed_can_be_typed_and_is_what_a_run_takes(photos, of_eight):
    base = ["--device", "cuda", "--photos-per-step", str(photos), "--validation-photos", "3"]
    config = load_config(RetoucherConfig, base, prog="align-retoucher")
    words = []
    for change in (*CHANGES, *MORE_DEVICES):
        if (changed := change(config)) is not None:
            words.append(typed(config, changed))
            assert load_config(RetoucherConfig, [*base, *words[-1].split()], prog="align-retoucher") == changed
            check_sharding(changed, changed.plan_devices)
            assert (changed.plan_devices > 1) == (change in MORE_DEVICES)
    assert {word.strip() for word in words[-2].split("--")} == {"", "sharding fsdp2", "validation-photos 4", "plan-devices 4"}
    assert f"--photos-per-step {of_eight} " in f"{words[-1]} " and "--validation-photos 8 " in f"{words[-1]} "


def test_a_plan_refuses_what_the_run_refuses():
    config = RetoucherConfig.of(sharding="fsdp2", photos_per_step=16, plan_devices=32)
    with pytest.raises(ConfigError, match="--photos-per-step 16: .* multiple of the 32 processes; try 32"):
        dry_run(config)
    with pytest.raises(ConfigError, match="--validation-photos 24: .* at least one for each of 32"):
        dry_run(replace(config, photos_per_step=32))
    with pytest.raises(ConfigError, match="--plan-devices 1: --sharding fsdp2 .* give --plan-devices 8"):
        dry_run(replace(config, plan_devices=1))


def test_what_the_options_save_and_do_not_save():
    few = {"held_out_photos": 2}  # an evaluation's own pictures do not depend on the micro-batch
    below = plan_memory(RetoucherConfig.of(group_size=16, micro_batch=4, device="cuda", **few))
    equal = plan_memory(RetoucherConfig.of(group_size=16, micro_batch=16, device="cuda", **few))
    assert below.phases["update, 4 candidates at once"] < 0.5 * equal.phases["update, 16 candidates at once"]
    assert below.phases["evaluation, 4 photos at once"] < 0.5 * equal.phases["evaluation, 16 photos at once"]
    offloaded = plan_memory(replace(RetoucherConfig.of(group_size=4), offload_text_encoder=True))
    resident = plan_memory(RetoucherConfig.of(group_size=4))
    assert offloaded.held["text encoders"] == 0
    reading = offloaded.phases["encoding text, the encoders beside the transformer"]
    assert reading == resident.phases["encoding text"] + resident.held["text encoders"]


def test_changes_that_a_backbone_does_not_know_are_not_proposed():
    config = RetoucherConfig.of()
    proposed = [typed(config, changed) for change in CHANGES if (changed := change(config)) is not None]
    assert "--gradient-checkpointing" in proposed and "--quantize nf4" not in proposed and "--resolution 512" not in proposed
    real = replace(config, backbone="flux_kontext", resolution=1024, gradient_checkpointing=True)
    proposed = [typed(real, changed) for change in CHANGES if (changed := change(real)) is not None]
    assert {"--quantize nf4", "--resolution 512"} <= set(proposed) and "--gradient-checkpointing" not in proposed


def test_backbones_without_a_known_architecture_are_refused():
    with pytest.raises(ConfigError, match="--dry-run knows the architectures of tiny"):
        plan_memory(RetoucherConfig.of(backbone="mine.py:BACKBONE"))
    with pytest.raises(WeightsError, match="no such folder"):
        plan_memory(RetoucherConfig.of(backbone="flux_kontext", model="./nowhere"))


def test_planning_computes_nothing():
    backbone = meta_backbone("tiny", None, None)
    assert all(t.is_meta for modules in parts_of(backbone).values() for module in modules for t in module.parameters())
    assert torch.empty(0).device.type == "cpu"


def test_nft_wants_the_velocity_of_the_prompt_alone():
    qwen = {"backbone": "qwen_image_edit", "model": "Qwen/Qwen-Image-Edit", "loss": "nft", "dpg": False, "shared_noise": False}
    guided = SimpleNamespace(forwards=2, guidance=4.0)
    with pytest.raises(ConfigError, match="--guidance 4: --loss nft regresses the velocity of the prompt alone; give --guidance 1"):
        check_guidance(RetoucherConfig.of(**qwen), guided)
    check_guidance(RetoucherConfig.of(backbone="qwen_image_edit", model="Qwen/Qwen-Image-Edit"), guided)
