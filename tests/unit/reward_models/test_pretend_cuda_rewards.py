"""Learned rewards on a CUDA device that is none (`pretend_cuda`): each computes there, and its values are the CPU's.

The verifiable ones run in `tests/unit/policies/test_pretend_cuda.py`. Judges run by transformers; those of vLLM and behind an address hand
pictures over as files, and have no device here.
"""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from onnx_nets import write_arcface
from pretend_cuda import PLACES
from tiny_judge import TAGS
from tiny_qwen3_vl import build_qwen3_5, build_qwen3_vl

from preference_data.contract import BRIEF_PROMPT
from reward_models import learned as arcface
from reward_models.judge import backends
from reward_models.judge.judge import load_judge
from reward_models.judge.reward import JudgeReward
from reward_models.judge.settings import JudgeSettings, write_settings
from reward_models.learned import arcface_change, has_arcface
from reward_models.photos import Photos
from reward_models.reward_set import build_rewards
from tools.embedded.tiny_vlm import build_model, build_processor

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"size": 32, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}


def clip(folder: Path) -> str:
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}))
    save_file(open_clip.CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")
    return f"clip_similarity:{folder}"


def iqa(folder: Path) -> str:
    pytest.importorskip("pyiqa", exc_type=ImportError)
    return "iqa:piqe"


def by_arcface(folder: Path) -> str:
    write_arcface(folder / "w600k_r50.onnx")
    return f"arcface:{folder}"


BUILDS = {
    "qwen2_5": lambda texts, words: (build_model(made := build_processor(texts, words), hidden_size=96, layers=2, vision_size=32), made),
    "qwen3": build_qwen3_vl,
    "qwen3_5": build_qwen3_5,
}


@pytest.mark.parametrize(("place", "times"), PLACES)
@pytest.mark.parametrize("build", BUILDS)
def test_a_judge_on_the_device_is_the_cpus(build, place, times, tmp_path, monkeypatch, photos):
    """One that knows nothing: its form is forced, so that it can be read."""
    model, processor = BUILDS[build]([f"assistant user {BRIEF_PROMPT}"] * 3, TAGS)
    processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 32}  # few tokens a picture
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    write_settings(tmp_path, JudgeSettings("as-taken", "brief", 1.0, "tiny"))
    monkeypatch.setattr(backends, "complete", torch.no_grad()(inspect.unwrap(backends.complete)))
    photo, photo_of = photos.select(slice(0, 1)), torch.zeros(2, dtype=torch.long)
    candidates = photos.source[:1] * torch.tensor([0.9, 0.6]).view(2, 1, 1, 1)
    judged = []

    def scores(device: str) -> torch.Tensor:
        """Of the candidates, each dimension's and the reward's."""
        judge = JudgeReward(load_judge(str(tmp_path), device=device, dtype="float32"), "score_beside_anchor")
        there = Photos(**{field.name: getattr(photo, field.name).to(device) for field in fields(Photos)})
        given = (candidates.to(device), there, photo_of)
        reward = judge.of_groups(*given)
        assert reward.device.type == device and judge.counts.asked > judge.counts.unreadable == 0
        judged.append(judge)
        return torch.stack([reward.cpu(), *judge.dimensions(*given).values()])

    expected = scores("cpu")
    with place():
        found = scores("cuda")
        assert judged[1].judge.backend.model.device.type == "cuda"
    assert torch.allclose(found, expected, atol=1e-3 * times) and expected.isfinite().all()


@pytest.mark.parametrize(("place", "times"), PLACES)
@pytest.mark.parametrize("make", [clip, iqa, by_arcface])
def test_a_learned_reward_on_the_device_is_the_cpus(make, place, times, tmp_path, photos):
    name = make(tmp_path)
    photo, candidates = photos.select(slice(0, 1)), photos.source[:1] * torch.tensor([0.9, 0.6]).view(2, 1, 1, 1)
    photo_of = torch.zeros(2, dtype=torch.long)
    expected = build_rewards((name,), (), "product").parts(candidates, photo, photo_of)[name]
    with place():
        there = Photos(**{field.name: getattr(photo, field.name).to("cuda") for field in fields(Photos)})
        rewards = build_rewards((name,), (), "product", "cuda")
        found = rewards.parts(candidates.to("cuda"), there, photo_of)[name]
        assert found.device.type == "cpu"
        assert torch.allclose(found, expected, atol=1e-4 * times, equal_nan=True) and not found.isnan().all()


def test_arcface_is_measured_where_its_weights_are(tmp_path, monkeypatch, photos):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_arcface()
    (folder := tmp_path / ".insightface" / "models" / "buffalo_l").mkdir(parents=True)
    write_arcface(folder / "w600k_r50.onnx")
    arcface._own_net.cache_clear()
    assert has_arcface()
    assert (arcface_change(photos.clean, photos).abs() < 1e-5).all(), "the person is the clean portrait"
    changed = arcface_change(1 - photos.source, photos)
    assert (changed > 0.01).all()
    arcface._own_net.cache_clear()
