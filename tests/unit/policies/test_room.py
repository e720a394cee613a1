"""Out of memory: less at once with the same result, one line said; one clear line where there is no less."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from policies.retoucher.evaluate import evaluate_policy, evaluation_set
from policies.retoucher.micro_batch import MicroBatch
from portraitkit.errors import OutOfMemory
from portraitkit.runs.folder import SilentRunFolder


class Small:
    """A backbone on a device that has room for few rows at once; it notes how many went through."""

    def __init__(self, backbone, limit: int) -> None:
        self.__dict__.update(inner=backbone, limit=limit, most=0)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def velocity(self, x, sigma, condition):
        """The inner one's, as long as there is room."""
        limit = self.limit * (2 if not torch.is_grad_enabled() else 1)
        if len(x) > limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} GiB. GPU 0 has less.")
        self.__dict__["most"] = max(self.most, len(x))
        return self.inner.velocity(x, sigma, condition)


def test_work_is_done_with_half_as_often_as_needed_and_it_stays_so():
    said, tried = [], []
    room = MicroBatch(48, "update", say=said.append)

    def work(rows):
        tried.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return rows

    assert room.fit(24, work) == 3 and tried == [48, 12, 6, 3]  # there are 24: 24 would be the same again
    assert room.fit(24, work) == 3 and tried[4:] == [3]
    assert said[0] == "update: out of memory with 24 at once; on with 12, as --micro-batch 12 would" and len(said) == 3


def test_what_cannot_be_halved_ends_with_one_line():
    def full(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with pytest.raises(OutOfMemory, match=r"^sampling, one at a time: CUDA out of memory; a smaller --resolution, .* --dry-run says"):
        MicroBatch(4, "sampling").fit(4, full)
    with pytest.raises(OutOfMemory, match=r"^update, 4 at once: .* start with --micro-batch 2$") as stopped:
        MicroBatch(4, "update", fixed=True).fit(8, full)
    assert stopped.value.alone


@pytest.mark.parametrize("updates", [1, 2])
def test_a_step_that_runs_out_of_memory_is_the_step_of_smaller_micro_batches(make_trainer, config, updates):
    config = replace(config, credit="local", lr_scheduler="constant", updates_per_step=updates, shared_noise=False)
    plain, small = make_trainer(config), make_trainer(config)
    plain.sampling_batch.rows, plain.update_batch.rows = 4, 2
    small.backbone = Small(small.backbone, 2)
    said = []
    small.sampling_batch.say = small.update_batch.say = said.append
    wanted, found = plain.train_step(), small.train_step()
    assert small.backbone.most == 4 and (small.sampling_batch.rows, small.update_batch.rows) == (4, 2)
    assert [line.partition(":")[0] for line in said] == (["sampling", "update"] if updates == 2 else ["sampling", "update", "update"])
    assert found.gradient_norm == wanted.gradient_norm > 0 and found.figures == wanted.figures
    assert torch.equal(found.rewards, wanted.rewards)
    assert all(torch.equal(small.adapter[name], value) for name, value in plain.adapter.items())


def test_evaluation_goes_through_the_network_in_micro_batches(make_trainer, config):
    trainer = make_trainer(replace(config, micro_batch=3))
    data = evaluation_set(trainer.backbone, trainer.source, "validation", 8, prompt=config.prompt, noise_seed=7)
    whole = evaluate_policy(trainer.backbone, data, trainer.rewards, config.num_steps)
    trainer.backbone = Small(trainer.backbone, 8)
    parts = trainer.evaluate(data, trainer.current())
    assert trainer.backbone.most == 3
    torch.testing.assert_close(parts.pictures, whole.pictures, rtol=1e-3, atol=1e-4)  # another batch, another rounding
    for name, values in whole.values.items():
        torch.testing.assert_close(parts.values[name], values, rtol=1e-3, atol=1e-3, equal_nan=True)
    alone = evaluate_policy(trainer.backbone, data.select(torch.arange(3)), trainer.rewards, config.num_steps)
    assert torch.equal(parts.pictures[:3], alone.pictures)


def test_the_rollout_reward_beside_the_ode_is_measured_in_micro_batches(make_trainer, config):
    trainer = make_trainer(replace(config, micro_batch=1))
    trainer.backbone = Small(trainer.backbone, 8)
    assert 0 <= trainer.ode_reward([0, 1]) <= 1 and trainer.backbone.most == 1


def test_the_adapter_is_there_before_the_held_out_photos_are_looked_at(make_trainer, config, tmp_path):
    from policies.retoucher.run import _finish

    trainer = make_trainer(config)
    data = evaluation_set(trainer.backbone, trainer.source, "held_out", 2, prompt=config.prompt, noise_seed=7)
    trainer.backbone = Small(trainer.backbone, 0)
    with pytest.raises(OutOfMemory, match="sampling, one at a time"):
        _finish(trainer, data, data, SilentRunFolder(tmp_path), Console(quiet=True), 0.0)
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()
