"""Encodings are made once: within a run, and by the first of two runs; what they depend on is in their names."""

from dataclasses import replace

import pytest
import tiny_qwen
import torch

from policies.retoucher.backbones import tiny
from policies.retoucher.model.backbone import Backbone
from policies.retoucher.model.encoding_cache import CachedBackbone, open_cache, with_cache
from portraitkit.errors import RunFolderError
from tools.embedded import tiny_kontext

BUILDS = {
    "kontext": lambda: tiny.wrap(tiny_kontext.build_pipeline(0)),
    "qwen": lambda: tiny_qwen.wrap(tiny_qwen.build_pipeline()),
}


@pytest.fixture(params=BUILDS)
def build(request):
    """A function that makes a backbone, every time with the same weights."""
    return BUILDS[request.param]


def pictures(backbone, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, backbone.resolution, backbone.resolution, generator=torch.Generator().manual_seed(2))


def forbid_encoding(backbone) -> None:
    """Any use of an encoder fails from now on."""

    def used(*args, **more):
        raise AssertionError("an encoder was used")

    backbone.pipeline.vae.encode = backbone.pipeline.encode_prompt = used
    for part in backbone.text_encoders:
        part.forward = used


def same(a, b) -> None:
    assert a.own_text == b.own_text and (a.negative is None) == (b.negative is None)
    for name in ("reference", "residual", "prompt", "pooled", "negative"):
        if getattr(a, name) is not None:
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_the_second_run_encodes_nothing(build, tmp_path):
    plain, first = build(), CachedBackbone(build())
    assert isinstance(first, Backbone)
    images = pictures(plain)
    first.keep_in(tmp_path / "cache")
    same(first.condition(images, "retouch"), plain.condition(images, "retouch"))
    assert torch.equal(first.encode(images), plain.encode(images))

    second = CachedBackbone(build())
    second.keep_in(tmp_path / "cache")
    forbid_encoding(second.backbone)
    condition = second.condition(images, "retouch")
    same(condition, plain.condition(images, "retouch"))
    assert torch.equal(second.encode(images), plain.encode(images))
    assert torch.equal(second.condition(images[[2, 0, 2]], "retouch").reference, condition.reference[[2, 0, 2]])
    with pytest.raises(AssertionError, match="an encoder was used"):
        second.condition(images, "another prompt")
    with pytest.raises(AssertionError, match="an encoder was used"):
        second.encode(1 - images)


def test_only_what_is_new_is_encoded(build, tmp_path):
    cached = CachedBackbone(build())
    cached.keep_in(tmp_path)
    images = pictures(cached)
    seen: list[int] = []
    inner = cached.backbone.condition
    cached.backbone.condition = lambda some, prompt: seen.append(len(some)) or inner(some, prompt)
    cached.condition(images[[0, 0]], "retouch")
    condition = cached.condition(images, "retouch")
    assert seen == [1, 2] and len(condition) == 3
    same(condition.select(torch.tensor([0])), build().condition(images[:1], "retouch"))


def test_what_is_encoded_before_there_is_a_folder_is_written_once_there_is(build, tmp_path):
    cached = CachedBackbone(build())
    images = pictures(cached, 1)
    cached.condition(images, "retouch")
    assert not list(tmp_path.iterdir()) and cached.waiting
    cached.keep_in(tmp_path / "cache")
    forbid_encoding(cached.backbone)
    cached.condition(images, "retouch")
    assert not cached.waiting and not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".safetensors"]


def test_other_weights_and_other_settings_are_other_files(tmp_path):
    keys = [tiny.wrap(tiny_kontext.build_pipeline(seed)).encoding_key() for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    pipeline = tiny_qwen.build_pipeline()
    variants = [tiny_qwen.wrap(pipeline, guidance=g, negative_prompt=n).encoding_key() for g, n in ((4, " "), (3, " "), (1, " "), (4, "x"))]
    assert variants[0] == variants[1] and len(set(variants)) == 3, "the scale is no part of an encoding, the negative prompt is"


def test_a_damaged_file_is_named(backbone, tmp_path):
    cached = CachedBackbone(backbone)
    cached.keep_in(tmp_path)
    images = pictures(backbone, 1)
    cached.encode(images)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunFolderError, match=r"a damaged encoding .*; delete it, it is made again"):
        cached.encode(images)


def test_a_folder_that_cannot_be_made_is_named(backbone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot hold encodings .* --cache-dir"):
        CachedBackbone(backbone).keep_in(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "cached"),
    [({}, False), ({"photos": "x"}, True), ({"photos": "x", "cache_dir": "none"}, False), ({"cache_dir": "here"}, True)],
)
def test_photos_of_a_folder_are_cached_and_endless_ones_only_if_asked(backbone, config, changes, cached, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(config, output_dir=str(tmp_path / "run"), **changes)
    made = with_cache(backbone, config)
    assert isinstance(made, CachedBackbone) == cached
    open_cache(made, config)
    assert (tmp_path / "here").is_dir() == ("cache_dir" in changes and cached)
    assert (tmp_path / "run" / "cache").is_dir() == (changes == {"photos": "x"})


def test_training_is_the_same_with_a_cache(make_trainer, config, tmp_path):
    from policies.retoucher.trainer import Trainer

    plain = make_trainer(config)
    cached = CachedBackbone(tiny.wrap(tiny_kontext.build_pipeline(0)))
    cached.keep_in(tmp_path)
    trainer = Trainer(config, cached, plain.source, plain.rewards, plain.console)
    for _ in range(2):
        plain.train_step()
        trainer.train_step()
    for name, value in plain.adapter.items():
        assert torch.equal(value, trainer.adapter[name]), name
    assert len(list(tmp_path.iterdir())) == 2 * 2 * config.photos_per_step + 1, "photos, their anchors, one text"
