"""GRPO's updates on a CUDA device that is none (`pretend_cuda`), as `align-vlm` and `train-reward-model` run them: TRL's own loop, from
the pictures to the optimiser's step. What is left on the CPU fails here as it would on a GPU; the figures and weights are the CPU's.
"""

import pytest
import torch
from pretend_cuda import PLACES, pretend_cuda
from tiny_qwen3_vl import build_qwen3_5, build_qwen3_vl
from tiny_vlm import CHANCE, write_tiny_vlm
from transformers import TrainerCallback
from trl.kernels import chunked_logprob
from trl.trainer import utils

from portraitkit.vlm.model import be_quiet, load_model, load_processor
from portraitkit.vlm.rows import Row
from portraitkit.vlm.shared_prefix import read_once
from portraitkit.vlm.stages import release
from portraitkit.vlm.trainer_arguments import grpo_arguments, lora_arguments, start_processes
from portraitkit.vlm.trainer_options import TrainerOptions
from portraitkit.vlm.trainers import make_grpo_trainer

FIGURES = ("loss", "grad_norm", "reward", "reward_std", "kl", "entropy")
SIZES = {"prompts_per_step": 2, "group_size": 2, "max_tokens": 4, "max_train_steps": 2, "warmup_steps": 0, "temperature": 2.0}


def qwen2_5(folder) -> None:
    write_tiny_vlm(folder)


def qwen3(folder) -> None:
    for part in build_qwen3_vl(["Area? one two three"] * 3):
        part.save_pretrained(folder)


def qwen3_5(folder) -> None:
    for part in build_qwen3_5(["Area? one two three"] * 3):
        part.save_pretrained(folder)


@pytest.fixture
def by_cpu(monkeypatch):
    """Answers are drawn by the CPU's generator, so that they are the same everywhere."""
    draw = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda chances, **how: draw(chances.cpu(), **how).to(chances.device))


@pytest.fixture
def without_kernels(monkeypatch):
    """TRL folds tiles of logits in a Triton kernel, or by plain operations where there is no Triton; see the last test."""
    monkeypatch.setattr(chunked_logprob, "_use_triton", lambda device: False)


def trained(folder, device: str, scratch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Figures of the updates and the LoRA after them."""
    be_quiet()
    options = TrainerOptions(device=device, dtype="float32", rank=4, beta=0.04, learning_rate=1e-2, **SIZES)
    start_processes(options)
    model, processor = load_model(str(folder), device=device, freeze_vision=True), load_processor(str(folder))
    drawn = torch.Generator().manual_seed(1)
    rows = [Row((torch.rand(3, 64, 64, generator=drawn),), None, "", {}) for _ in range(4)]
    arguments = grpo_arguments(options, str(scratch))
    arguments.save_strategy = "no"
    given = (model, processor, CHANCE.prompt, rows, arguments, TrainerCallback(), CHANCE, "fixed", lora_arguments(options))
    trainer = make_grpo_trainer(*given, frozen=True)
    with read_once(trainer.model):
        trainer.train()
    release()
    assert {value.device.type for value in trainer.model.parameters()} == {device}
    logs = trainer.state.log_history[: SIZES["max_train_steps"]]
    figures = {f"{step} {name}": log[name] for step, log in enumerate(logs) for name in FIGURES}
    return figures, {name: value.detach().cpu() for name, value in trainer.model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(("place", "times"), PLACES)
@pytest.mark.parametrize("write", [qwen2_5, qwen3, qwen3_5])
def test_updates_on_the_device_are_the_cpus(write, place, times, tmp_path, by_cpu, without_kernels):
    write(tmp_path / "model")
    expected, ours = trained(tmp_path / "model", "cpu", tmp_path)
    with place():
        found, theirs = trained(tmp_path / "model", "cuda", tmp_path)
    assert found == pytest.approx(expected, rel=1e-3 * times, abs=1e-5 * times)
    assert expected["0 reward_std"] > 0 and expected["1 kl"] > 0 and ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4 * times) for name in ours)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a driver the kernel runs, in the test above")
def test_what_a_device_without_a_driver_cannot_run_is_only_the_kernel():
    """A list of one: as soon as this runs, `without_kernels` has to go."""
    with pretend_cuda():
        hidden, weight = torch.ones(2, 4, device="cuda"), torch.ones(8, 4, device="cuda")
        targets = torch.zeros(2, dtype=torch.long, device="cuda")
        with pytest.raises(AssertionError, match="libcuda"):
            utils._ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 8)
