"""CLIP similarity, with a tiny CLIP of random weights in open_clip's own class."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from unpickled import Touch

from portraitkit.errors import ConfigError, WeightsError
from reward_models.learned import clip_similarity

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"size": 32, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}


def write_config(folder: Path, model: dict[str, Any] = MODEL) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    write_config(folder)
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def reward(folder):
    return clip_similarity(str(folder))


def test_a_copy_scores_one_and_other_pictures_less(reward, photos):
    assert torch.allclose(reward(photos.source, photos), torch.ones(8), atol=1e-5)
    for other in (1 - photos.source, torch.zeros_like(photos.source)):
        values = reward(other, photos)
        assert ((values >= 0) & (values < 0.98)).all()


def test_each_candidate_is_compared_with_its_own_photo(reward, photos, retouches):
    """Also where a group repeats its photo, which is embedded once."""
    rows = torch.tensor([0, 0, 5, 5, 5, 0])
    candidates = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7 * retouches[rows]
    together = reward(candidates, photos.select(rows))
    alone = torch.cat([reward(candidates[i : i + 1], photos.select(rows[i : i + 1])) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert len(set(together.round(decimals=5).tolist())) == 6


def test_a_candidate_with_nan_gets_nan_alone(reward, photos):
    candidates = photos.source.clone()
    candidates[1, 0, 5, 5] = torch.nan
    assert reward(candidates, photos).isnan().tolist() == [False, True] + [False] * 6


def test_it_gives_no_gradient_to_its_weights(reward, photos):
    assert not reward(photos.source.clone().requires_grad_(), photos).requires_grad


def test_a_folder_without_config_or_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path} has no open_clip_config.json: put there what open_clip's push_to_hf_hub saves$"):
        clip_similarity(str(tmp_path))
    write_config(tmp_path)
    with pytest.raises(WeightsError, match=f"{tmp_path} has no weights: put open_clip_model.safetensors there$"):
        clip_similarity(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"model_cfg": {"text_cfg": 3}}'])
def test_a_config_that_is_not_open_clips_is_refused(tmp_path, text):
    (tmp_path / "open_clip_config.json").write_text(text)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="open_clip_config.json cannot be read"):
        clip_similarity(str(tmp_path))


def test_a_text_tower_from_the_hub_is_refused(tmp_path, folder):
    write_config(tmp_path, MODEL | {"text_cfg": {"hf_model_name": "roberta-base"}})
    (tmp_path / "open_clip_model.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"takes its text tower from the hub \(roberta-base\)"):
        clip_similarity(str(tmp_path))


def test_damaged_weights_are_refused(tmp_path, folder):
    write_config(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes()[:2000])
    with pytest.raises(WeightsError, match="cannot be loaded .*the file is damaged or of another model"):
        clip_similarity(str(tmp_path))


def test_weights_of_another_model_are_refused(tmp_path, folder):
    write_config(tmp_path, MODEL | {"embed_dim": 24})
    (tmp_path / "open_clip_model.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="cannot be loaded .*of another model") as caught:
        clip_similarity(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path):
    write_config(tmp_path)
    with (tmp_path / "open_clip_pytorch_model.bin").open("wb") as file:
        torch.save({"weight": Touch(tmp_path / "owned")}, file, pickle_module=pickle)
    with pytest.raises(WeightsError, match="holds more than tensors.*use safetensors"):
        clip_similarity(str(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="ViT-B-32/laion2b_s34b_b79 is neither .*did you mean 'ViT-B-32/laion2b_s34b_b79k'"):
        clip_similarity("ViT-B-32/laion2b_s34b_b79")


def test_a_known_model_whose_weights_are_not_cached_is_refused_and_not_fetched(tmp_path, monkeypatch):
    import huggingface_hub
    import open_clip

    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(open_clip, "download_pretrained", fetch)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(WeightsError, match="ViT-B-32/laion2b_s34b_b79k needs open_clip_model.safetensors of laion/") as caught:
        clip_similarity("ViT-B-32/laion2b_s34b_b79k")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=f"clip_similarity:RN50/openai needs .* in {tmp_path}"):
        clip_similarity("RN50/openai")
