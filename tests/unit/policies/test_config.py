"""The options of `align-retoucher`: in groups, with the defaults of their backbone."""

import pytest
import torch

from policies.retoucher.ablate import ARMS, arm_config
from policies.retoucher.config import RetoucherConfig, idle_options
from policies.retoucher.photos import check_photos
from portraitkit.config import load_config
from portraitkit.errors import ConfigError, DataError
from portraitkit.pictures.images import write_image

NFT = {"loss": "nft", "dpg": False, "shared_noise": False}


def shown(capsys, *options: str) -> str:
    with pytest.raises(SystemExit):
        load_config(RetoucherConfig, ["--help", *options], prog="align-retoucher")
    return capsys.readouterr().out


def test_help_is_in_groups_and_shows_the_defaults_of_the_backbone(capsys):
    tiny, real = shown(capsys), shown(capsys, "--backbone", "flux_kontext")
    titles = [line[:-1] for line in tiny.split("Example:")[1].splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[:4] == ["What and where", "Model", "Rollouts", "Dynamic Path Guidance"] and len(titles) == 9
    assert "None" not in tiny.replace("None keeps", "") and "--dpg, --no-dpg" in tiny
    device = [text.split("--device TEXT")[1].split("--quantize")[0] for text in (tiny, real)]
    assert device[0].rstrip().endswith("cpu)") and device[1].rstrip().endswith("cuda)")


def test_an_option_that_is_gone_says_what_to_do():
    with pytest.raises(ConfigError, match="^--advantage-clip is gone: advantages are clipped to 5, as Flow-GRPO does$"):
        load_config(RetoucherConfig, ["--advantage-clip", "3"], prog="align-retoucher")


def test_the_value_of_an_option_that_is_gone_names_the_new_ones(tmp_path):
    with pytest.raises(ConfigError, match="^--advantage per_reward is gone: give mixgrpo .* or gdpo"):
        load_config(RetoucherConfig, ["--advantage", "per_reward"], prog="align-retoucher")
    recipe = tmp_path / "old.toml"
    recipe.write_text('advantage = "per_reward"\n')
    with pytest.raises(ConfigError, match="the option advantage per_reward is gone: give mixgrpo .* or gdpo"):
        load_config(RetoucherConfig, ["--config", str(recipe)], prog="align-retoucher")
    with pytest.raises(ConfigError, match="^--global-std: goes with --advantage combined, not with gdpo"):
        load_config(RetoucherConfig, ["--advantage", "gdpo", "--global-std"], prog="align-retoucher")


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_of_the_ablation_lays_its_settings_and_no_others_upon_the_recipe(arm):
    recipe = load_config(RetoucherConfig, ["--config", "ablation", "--seed", "3"], prog="align-retoucher")
    config = arm_config(recipe, arm)
    changed = {name: value for name, value in vars(config).items() if value != getattr(recipe, name)}
    idle = {"ablate", *idle_options(config.loss, config.dpg)}
    assert changed.keys() - idle <= ARMS[arm].keys() and all(getattr(config, name) == value for name, value in ARMS[arm].items())
    assert all(getattr(config, name) == getattr(RetoucherConfig, name) for name in idle)
    if arm == "nft-anchors":
        tiny = load_config(RetoucherConfig, ["--config", "tiny_nft"], prog="align-retoucher")
        differ = {name for name, value in vars(config).items() if value != getattr(tiny, name)}
        schedule = {"learning_rate", "lr_scheduler", "max_train_steps", "held_out_photos", "checkpointing_steps"}
        assert differ <= {"output_dir", "seed", "segments", "micro_batch"} | schedule


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": "guard"}, "--ratio guard: does nothing with --loss nft"),
        ({"step_weight": "attenuation"}, "--step-weight attenuation: does nothing with --loss nft"),
        ({"ablate": True}, "^--ablate: does nothing with --loss nft"),
        ({"loss": "dppo", "ratio": "guard"}, "--ratio guard: does nothing with --loss dppo"),
        ({"loss": "dppo", "clip_range": 0.2}, "--clip-range 0.2: does nothing with --loss dppo"),
        ({"loss": "neighbor", "shared_noise": True, "eta": 0.5}, "--eta 0.5: does nothing with --loss neighbor"),
        (
            {"loss": "neighbor"},
            "--loss neighbor: goes with --no-dpg, --shared-noise and --neighbor-anchors 4 of at most --group-size 12, without",
        ),
        ({"loss": "neighbor", "dpg": True}, "without --ratio, --step-weight, .*, --sampler, --eta; change what differs$"),
        (
            {"loss": "neighbor", "shared_noise": True, "sampler": "cps", "eta": 0.5},
            "--sampler cps, --eta 0.5: do nothing .*; leave them out",
        ),
        ({"loss": "neighbor", "shared_noise": True, "group_size": 3}, "--neighbor-anchors 4 of at most --group-size 3"),
        ({"perturbation": 0.5}, "--perturbation 0.5: does nothing with --loss nft"),
        ({"perturbation": 0.3}, "--perturbation 0.3: does nothing with --loss nft"),  # its default, no less
        ({"kl_threshold": 1.0}, "--kl-threshold 1.0: does nothing with --loss nft"),
        ({"shared_noise": True}, "--loss nft: goes with --no-shared-noise"),
        ({"clip_range": 0.2}, "--clip-range 0.2: does nothing with --loss nft --no-dpg; leave it out"),
        ({"eta": 0.5}, "--eta 0.5: does nothing with --loss nft --no-dpg; leave it out"),
        ({"window": "all"}, "--window all: does nothing with --loss nft --no-dpg; leave it out"),
        ({"noise_levels": 3, "loss": "grpo"}, "--noise-levels 3: does nothing with --loss grpo --no-dpg; leave it out"),
        ({"anchors": "best-of-n"}, "--anchors best-of-n: needs --dpg or --anchor-weight, --anchor label"),
        ({"anchor_weight": 0.5, "anchor": "none"}, "--anchor-weight 0.5: needs --loss nft and an --anchor"),
        ({"anchor_weight": 0.5, "loss": "grpo"}, "--anchor-weight 0.5: needs --loss nft and an --anchor"),
        ({"anchor_weight": 0.5, "anchor": "wrong", "photos_per_step": 1}, "--anchor wrong: takes another photo's anchor"),
    ],
)
def test_what_nft_has_no_use_for_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        RetoucherConfig.of(**{**NFT, **options})
    assert RetoucherConfig.of(loss="nft", eta=0.5, window="all", noise_levels=3).eta == 0.5  # with --dpg they are what is drawn


def test_an_idle_option_is_refused_at_its_default_value_too(tmp_path):
    (tmp_path / "r.toml").write_text('loss = "dppo"\nclip_range = 1e-4\n')
    ways = [
        (["--loss", "dppo", "--clip-range", "1e-4"], "", ""),
        (["--config", str(tmp_path / "r.toml")], " (of the recipe)", ", in a copy of the recipe"),
        (["--config", str(tmp_path / "r.toml"), "--clip-range", "1e-4"], "", ""),
    ]
    for argv, of, where in ways:
        with pytest.raises(ConfigError) as refused:
            load_config(RetoucherConfig, argv, prog="align-retoucher")
        assert str(refused.value) == f"--clip-range 0.0001{of}: does nothing with --loss dppo --dpg; leave it out{where}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": "window", "window_width": 9}, "^--window-width 9 must lie in 1 .. 7"),
        ({"window": "window", "window_start": 9}, "^--window-start 9 must lie in 0 .. 5"),
        ({"window": "sliding", "window_stride": 0}, "^--window-stride 0: must be 1 or more"),
        ({"window": "sliding", "window_every": 0}, "^--window-every 0: must be 1 or more"),
        ({"segments": 0}, "^--segments 0: must be 1 or more"),
    ],
)
def test_a_window_that_does_not_fit_is_named_by_its_option(options, words):
    with pytest.raises(ConfigError, match=words):
        RetoucherConfig.of(num_steps=8, **options).check_sampling()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**NFT, "anchor_weight": 0.5}, "--anchor-weight needs .* or train with --anchor-weight 0$"),
        ({}, "DPG needs .* or train with --no-dpg$"),
    ],
)
def test_photos_without_anchors_are_refused_with_a_way_out_that_is_one(tmp_path, options, words):
    write_image(tmp_path / "p.png", torch.zeros(3, 8, 8))
    config = RetoucherConfig.of(photos=str(tmp_path), **options)
    with pytest.raises(DataError, match=words):
        check_photos(config)
    if options:
        check_photos(RetoucherConfig.of(photos=str(tmp_path), **NFT))
