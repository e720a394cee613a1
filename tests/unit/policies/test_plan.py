"""The planner of `align-retoucher` against the memory of real training steps of the embedded retoucher.

What the photos' source and the rewards hold is the host's, whatever the device: they are run outside of the counter. All else counts.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from policies.retoucher.architectures import meta_backbone, parts_of
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.plan import changes, plan_memory
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.memory_trace import LiveBytes, size_of, tensors_of


def uncounted(function):
    """The function, its operations not seen by the counter; what it returns is, when it is used."""

    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call


def measured(make_trainer, config) -> int:
    """Most bytes of live tensors in two training steps: the second has the optimiser's states."""
    trainer = make_trainer(config)
    trainer.source = type("Source", (), {"load": staticmethod(uncounted(trainer.source.load))})()
    functions = {name: uncounted(function) for name, function in trainer.rewards.functions.items()}
    trainer.rewards = replace(trainer.rewards, functions=functions)
    modules = [module for some in parts_of(trainer.backbone).values() for module in some]
    held = [t for module in modules for t in tensors_of(module)] + [*trainer.average.values(), *trainer.best.values()]
    with LiveBytes(held, ("cpu",)) as live:
        for _ in range(2):
            trainer.train_step()
    return live.peak


@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 4, "gradient_checkpointing": False, "rank": 4},
        {"group_size": 8, "gradient_checkpointing": False, "rank": 32},
        {"group_size": 8, "gradient_checkpointing": True, "rank": 4},
        {"group_size": 6, "gradient_checkpointing": False, "micro_batch": 6, "kl_beta": 0.1},
        {"group_size": 6, "gradient_checkpointing": False, "micro_batch": 2},
    ],
)
def test_the_plan_is_within_a_tenth_of_what_is_measured(make_trainer, config, changes):
    config = replace(config, **changes)
    assert plan_memory(config).peak == pytest.approx(measured(make_trainer, config), rel=0.1)


def test_the_embedded_parts_weigh_what_the_real_ones_do(backbone):
    for name, modules in parts_of(meta_backbone("tiny", None, None)).items():
        real = size_of(t for module in parts_of(backbone)[name] for t in tensors_of(module))
        assert size_of(t for module in modules for t in tensors_of(module)) == real


def test_a_folder_of_ones_own_counts(tmp_path):
    from policies.retoucher.backbones import tiny

    tiny.build_pipeline(0).save_pretrained(tmp_path / "kontext")
    memory = plan_memory(
        RetoucherConfig(backbone="flux_kontext", model=str(tmp_path / "kontext"), resolution=64, group_size=2, micro_batch=2)
    )
    assert memory.parameters == sum(p.numel() for p in tiny.build_pipeline(0).transformer.parameters())
    with pytest.raises(WeightsError, match="made for QwenImageEditPipeline"):
        plan_memory(RetoucherConfig(backbone="qwen_image_edit", model=str(tmp_path / "kontext")))


def test_more_candidates_take_more_and_checkpointing_less():
    def peak(**changes):
        memory = plan_memory(RetoucherConfig(photos_per_step=1, micro_batch=64, **changes))
        return next(size for name, size in memory.phases.items() if name.startswith("update"))

    assert peak(group_size=16) > 1.7 * peak(group_size=8)
    assert peak(group_size=16, gradient_checkpointing=True) < 0.7 * peak(group_size=16)


def test_shares_of_devices():
    whole = plan_memory(RetoucherConfig(group_size=2))
    split = plan_memory(RetoucherConfig(group_size=2, plan_devices=4, sharding="fsdp2"))
    same = {name: size for name, size in whole.held.items() if name != "weights of the transformer"}  # the LoRA stays whole everywhere
    assert same == {name: size for name, size in split.held.items() if name != "weights of the transformer"}
    assert split.phases == whole.phases
    base = meta_backbone("tiny", None, None).transformer
    block = max(size_of(tensors_of(module)) for module in base.modules() if type(module).__name__.endswith("Block"))
    assert split.held["weights of the transformer"] == whole.held["weights of the transformer"] // 4 + 2 * block  # two are gathered


def test_what_the_options_do_not_save_is_said():
    below = plan_memory(RetoucherConfig(group_size=4, micro_batch=2))
    equal = plan_memory(RetoucherConfig(group_size=4, micro_batch=4))
    assert below.phases["update, 4 candidates at once"] == equal.phases["update, 4 candidates at once"]
    assert below.notes["--micro-batch 2"].startswith("cuts the rollout only")
    offloaded = plan_memory(replace(RetoucherConfig(group_size=4), offload_text_encoder=True))
    resident = plan_memory(RetoucherConfig(group_size=4))
    assert offloaded.held["text encoders"] == 0
    reading = offloaded.phases["encoding text, the encoders beside the transformer"]
    assert reading == resident.phases["encoding text"] + resident.held["text encoders"]


def test_changes_that_a_backbone_does_not_know_are_not_proposed():
    config = RetoucherConfig()
    proposed = [change.words for change in changes(config) if change.apply(config) is not None]
    assert "--gradient-checkpointing" in proposed and "--quantize nf4" not in proposed and "--resolution 512" not in proposed
    real = replace(config, backbone="flux_kontext", resolution=1024, gradient_checkpointing=True)
    proposed = [change.words for change in changes(real) if change.apply(real) is not None]
    assert {"--quantize nf4", "--resolution 512"} <= set(proposed) and "--gradient-checkpointing" not in proposed


def test_backbones_without_a_known_architecture_are_refused():
    with pytest.raises(ConfigError, match="--dry-run knows the architectures of tiny"):
        plan_memory(RetoucherConfig(backbone="mine.py:BACKBONE"))
    with pytest.raises(WeightsError, match="no such folder"):
        plan_memory(RetoucherConfig(backbone="flux_kontext", model="./nowhere"))


def test_planning_computes_nothing():
    backbone = meta_backbone("tiny", None, None)
    assert all(t.is_meta for modules in parts_of(backbone).values() for module in modules for t in module.parameters())
    assert torch.empty(0).device.type == "cpu"
