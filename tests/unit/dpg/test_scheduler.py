"""The scheduler alone, and inside a stock FluxKontextPipeline built from configuration."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from dpg.guidance import x_star
from dpg.sampler import Sampler
from dpg.scheduler import DPGScheduler
from dpg.sde import SAMPLERS, sde_step

STEPS = 6


def velocity(x: Tensor) -> Tensor:
    return torch.sin(3 * x) - 0.5 * x


def roll_out(scheduler: FlowMatchEulerDiscreteScheduler, x: Tensor, **keywords: Any) -> Tensor:
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x), timestep, x, return_dict=False, **keywords)[0]
    return x


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"use_karras_sigmas": True}, {"stochastic_sampling": True}])
def test_before_a_draw_it_is_the_parent_to_the_bit(settings: dict[str, Any], dtype: torch.dtype) -> None:
    ours, parent = DPGScheduler(**settings), FlowMatchEulerDiscreteScheduler(**settings)
    ours.set_anchor(start())
    expected = roll_out(parent, start(dtype), generator=torch.Generator().manual_seed(1))
    assert torch.equal(roll_out(ours, start(dtype), generator=torch.Generator().manual_seed(1)), expected)
    assert ours.drawn_steps == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{"sampler": "ode"}, *({"sampler": name, "eta": 0} for name in SAMPLERS)])
def test_drawn_without_noise_or_guidance_it_is_the_parent_to_the_bit(settings: dict[str, Any], dtype: torch.dtype) -> None:
    ours = DPGScheduler(window="all", **settings)
    ours.draw(0, record=True)
    expected = roll_out(FlowMatchEulerDiscreteScheduler(), start(dtype))
    assert torch.equal(roll_out(ours, start(dtype)), expected)
    assert [step.index for step in ours.trajectory] == list(range(len(ours.timesteps) - 1))  # noted all the same, for neighbors of theirs
    assert not any(step.std.any() or step.noise.any() for step in ours.trajectory)
    zero = DPGScheduler.from_config(ours.config, lambda_kind="zero")
    zero.set_anchor(start())
    zero.draw(0)
    assert torch.equal(roll_out(zero, start(dtype)), expected)


def test_settings_are_the_parents_and_beautygrpos_unless_told_otherwise() -> None:
    parent, ours = dict(FlowMatchEulerDiscreteScheduler().config), dict(DPGScheduler().config)
    own = {"sampler": "flow_sde", "eta": 0.7, "window": "segments", "segments": 3, "window_start": 0, "window_width": 2}
    own |= {"window_stride": 1, "window_every": 25, "lambda_kind": "linear", "lambda_max": 0.95, "lambda_target": "anchor"}
    assert {name: value for name, value in ours.items() if not name.startswith("_")} == {
        name: value for name, value in (parent | own).items() if not name.startswith("_")
    }


def test_per_token_timesteps_are_the_parents_and_refused_with_drawn_steps() -> None:
    ours, parent = DPGScheduler(), FlowMatchEulerDiscreteScheduler()
    x = start()
    results = []
    for scheduler in (ours, parent):
        scheduler.set_timesteps(STEPS)
        tokens = torch.full((2, 4), 500.0)
        results.append(scheduler.step(velocity(x), scheduler.timesteps[0], x, per_token_timesteps=tokens).prev_sample)
    assert torch.equal(*results)
    ours.draw(0)
    with pytest.raises(ValueError, match="per_token_timesteps must be None"):
        ours.step(velocity(x), ours.timesteps[1], x, per_token_timesteps=torch.full((2, 4), 500.0))


@pytest.mark.parametrize("begin_index", [None, 0])
def test_drawn_steps_are_those_of_sde_step_and_are_recorded(begin_index: int | None) -> None:
    scheduler = DPGScheduler(shift=3.0, segments=2, eta=0.5)
    anchor = torch.ones(1, 4, 8)
    scheduler.set_anchor(anchor)
    scheduler.draw(7, record=True, generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(STEPS)
    if begin_index is not None:
        scheduler.set_begin_index(begin_index)
    drawn, lambdas, sigmas = scheduler.drawn_steps, scheduler.lambdas, scheduler.sigmas.tolist()
    assert len(drawn) == 2 and lambdas == pytest.approx([0.95, 0.8, 0.6, 0.4, 0.2, 0])
    noise_source = torch.Generator().manual_seed(3)
    x = start()
    for i, timestep in enumerate(scheduler.timesteps):
        v = velocity(x)
        if i in drawn:
            keywords: dict[str, Any] = {"eta": 0.5, "anchor": anchor, "lam": lambdas[i], "sigma_max": sigmas[1]}
            expected = sde_step(x, v, sigmas[i], sigmas[i + 1], generator=noise_source, **keywords).x_next
        else:
            expected = x + (scheduler.sigmas[i + 1] - scheduler.sigmas[i]) * v
        output = scheduler.step(v, timestep, x)
        assert torch.equal(output.prev_sample, expected)
        x = output.prev_sample
    assert [taken.index for taken in scheduler.trajectory] == drawn
    for taken in scheduler.trajectory:
        assert taken.log_ratio(velocity(taken.x)).tolist() == [0, 0]
    roll_out(scheduler, start())
    assert [taken.index for taken in scheduler.trajectory] == drawn  # of the new rollout alone


def test_without_an_anchor_drawn_steps_are_plain_stochastic_ones() -> None:
    scheduler = DPGScheduler(window="all")
    scheduler.draw(0, record=True)
    first = roll_out(scheduler, start(), generator=torch.Generator().manual_seed(1))
    assert [taken.lam for taken in scheduler.trajectory] == [0] * (STEPS - 1)
    again = roll_out(scheduler, start(), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, roll_out(scheduler, start(), generator=torch.Generator().manual_seed(2)))
    scheduler.clear_draw()
    assert torch.equal(roll_out(scheduler, start()), roll_out(FlowMatchEulerDiscreteScheduler(), start()))


def test_full_guidance_follows_the_anchor_until_it_is_cleared() -> None:
    scheduler = DPGScheduler(sampler="ode", window="window", window_width=2, lambda_kind="constant", lambda_max=0.5)
    anchor = torch.ones(1, 4, 8)
    scheduler.set_anchor(anchor)
    scheduler.draw(0)
    scheduler.set_timesteps(STEPS)
    x = start()
    sigmas = scheduler.sigmas.tolist()
    plain = x + (sigmas[1] - sigmas[0]) * velocity(x)
    expected = 0.5 * plain + 0.5 * x_star(x, anchor, sigmas[0], sigmas[1])
    torch.testing.assert_close(scheduler.step(velocity(x), scheduler.timesteps[0], x).prev_sample, expected)
    scheduler.clear_anchor()
    assert torch.equal(roll_out(scheduler, start()), roll_out(FlowMatchEulerDiscreteScheduler(), start()))


def test_a_draw_depends_on_seed_and_iteration() -> None:
    scheduler = DPGScheduler()
    scheduler.set_timesteps(28)
    draws = []
    for seed, iteration in ((0, 0), (0, 1), (1, 0), (0, 0)):
        scheduler.draw(seed, iteration=iteration)
        draws.append(scheduler.drawn_steps)
    assert draws[0] == draws[3] and len({tuple(draw) for draw in draws}) == 3
    scheduler.draw()
    assert scheduler.drawn_steps == draws[0]


def test_one_step_is_safe_and_the_parents() -> None:
    scheduler, parent = DPGScheduler(segments=1), FlowMatchEulerDiscreteScheduler()
    scheduler.set_anchor(torch.ones(1, 4, 8))
    scheduler.draw(0)
    results = []
    for one in (scheduler, parent):
        one.set_timesteps(1)
        results.append(one.step(velocity(start()), one.timesteps[0], start(), return_dict=False)[0])
    assert torch.equal(*results)
    assert scheduler.drawn_steps == [] and scheduler.lambdas == [0]
    scheduler.set_timesteps(STEPS)
    assert scheduler.sampler == Sampler("flow_sde", 0.7, scheduler.sigmas[1].item())


def test_dtype_of_the_result_is_that_of_the_model() -> None:
    scheduler = DPGScheduler(window="all")
    scheduler.draw(0, record=True)
    scheduler.set_timesteps(STEPS)
    x = start()
    result = scheduler.step(velocity(x).bfloat16(), scheduler.timesteps[0], x).prev_sample
    assert result.dtype == torch.bfloat16
    (taken,) = scheduler.trajectory
    assert taken.x.dtype == torch.float32 and torch.equal(taken.x_next, result)


def test_from_config_both_ways_keeps_every_setting(tmp_path: Path) -> None:
    parent = FlowMatchEulerDiscreteScheduler(shift=3.0, base_shift=0.6)
    ours = DPGScheduler.from_config(parent.config, eta=0.4, sampler="cps", window="sliding")
    assert (ours.config.shift, ours.config.base_shift, ours.config.eta) == (3.0, 0.6, 0.4)
    back = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert type(back) is FlowMatchEulerDiscreteScheduler and back.config.shift == 3.0
    again = DPGScheduler.from_config(back.config)
    assert (again.config.eta, again.config.sampler, again.config.window) == (0.4, "cps", "sliding")
    ours.save_pretrained(tmp_path)
    loaded = DPGScheduler.from_pretrained(tmp_path)
    assert loaded.config.eta == 0.4
    for other in (back, again, loaded):
        ours.set_timesteps(STEPS)
        other.set_timesteps(STEPS)
        assert torch.equal(ours.sigmas, other.sigmas)


TIMES = {
    "steps": {"num_inference_steps": 6},
    "sigmas": {"sigmas": [1.0, 0.7, 0.35, 0.1]},
    "timesteps": {"timesteps": [1000.0, 600.0, 250.0]},
    "both": {"sigmas": [1.0, 0.6, 0.3], "timesteps": [1000.0, 600.0, 300.0]},
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("how", TIMES)
def test_timesteps_are_the_parents_however_they_are_set(how: str, dynamic: bool, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"use_dynamic_shifting": dynamic, "shift": 1.0 if dynamic else 3.0}
    keywords: dict[str, Any] = TIMES[how] | ({"mu": 0.8} if dynamic else {})
    ours, parent = DPGScheduler(**settings), FlowMatchEulerDiscreteScheduler(**settings)
    for scheduler in (ours, parent):
        scheduler.set_timesteps(**keywords)
    assert torch.equal(ours.timesteps, parent.timesteps) and torch.equal(ours.sigmas, parent.sigmas)
    if dynamic:
        with pytest.raises(ValueError, match="mu"):
            ours.set_timesteps(4)
    ours.draw(0, record=True)
    x, sigmas = start(), ours.sigmas.tolist()
    for timestep in ours.timesteps:
        x = ours.step(velocity(x), timestep, x, return_dict=False)[0]
        assert torch.isfinite(x).all()
    assert [(taken.sigma, taken.sigma_next) for taken in ours.trajectory] == [(sigmas[i], sigmas[i + 1]) for i in ours.drawn_steps]


def test_noise_is_scaled_as_the_parent_scales_it() -> None:
    ours, parent = DPGScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    scaled = []
    for scheduler in (ours, parent):
        scheduler.set_timesteps(STEPS)
        scaled.append(scheduler.scale_noise(start(), scheduler.timesteps[2:3], torch.ones(2, 4, 8)))
    assert torch.equal(*scaled)


def test_a_tuple_holds_what_the_dict_holds() -> None:
    results = []
    for return_dict in (True, False):
        scheduler = DPGScheduler(window="all")
        scheduler.draw(0, generator=torch.Generator().manual_seed(1))
        scheduler.set_timesteps(STEPS)
        output = scheduler.step(velocity(start()), scheduler.timesteps[0], start(), return_dict=return_dict)
        results.append(output.prev_sample if return_dict else output[0])
    assert torch.equal(*results)


def test_noise_and_steps_may_be_named_and_a_rollout_begun_again() -> None:
    scheduler = DPGScheduler()
    scheduler.draw(steps=[1, 3], record=True)
    scheduler.set_timesteps(STEPS)
    noise = {1: torch.ones(2, 4, 8), 3: torch.zeros(2, 4, 8)}
    ends = []
    for _ in range(2):
        scheduler.restart(anchor=None, noise=noise)
        x = start()
        for timestep in scheduler.timesteps:
            x = scheduler.step(velocity(x), timestep, x, return_dict=False)[0]
        ends.append(x)
        assert [taken.index for taken in scheduler.trajectory] == [1, 3]
        assert torch.equal(scheduler.trajectory[0].noise, noise[1])
    assert torch.equal(*ends)


def test_the_target_mean_quietens_the_noise_and_pulls_nowhere() -> None:
    taken = []
    for kind in ("zero", "constant"):
        scheduler = DPGScheduler(lambda_kind=kind, lambda_max=0.9, lambda_target="mean")
        scheduler.draw(steps=[0], record=True, noise={0: torch.ones(2, 4, 8)})
        scheduler.set_timesteps(STEPS)
        scheduler.step(velocity(start()), scheduler.timesteps[0], start())
        taken += scheduler.trajectory
    plain, quiet = taken
    assert torch.equal(plain.mean, quiet.mean) and torch.equal(plain.std, quiet.std)
    torch.testing.assert_close(quiet.x_next - quiet.mean, 0.1 * (plain.x_next - plain.mean), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("sampler 'euler' is unknown", {"sampler": "euler"}),
        ("eta -1 is out of range", {"eta": -1}),
        ("window 'half' is unknown", {"window": "half"}),
        ("segments 0 must be at least 1|segments 0", {"segments": 0}),
        ("lambda schedule 'cosine' is unknown", {"lambda_kind": "cosine"}),
        ("lam_max 2 must lie in", {"lambda_max": 2}),
        ("lambda_target 'input' is unknown", {"lambda_target": "input"}),
    ],
)
def test_impossible_settings_are_refused_at_once(message: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        DPGScheduler(**settings)


def test_a_draw_is_refused_where_it_cannot_hold() -> None:
    for scheduler in (DPGScheduler(stochastic_sampling=True), DPGScheduler(invert_sigmas=True)):
        with pytest.raises(ValueError, match="must be False for drawn steps"):
            scheduler.draw(0)
    scheduler = DPGScheduler(segments=9)
    scheduler.draw(0)
    with pytest.raises(ValueError, match="segments 9 must not exceed the 6 steps"):
        roll_out(scheduler, start())


# inside a stock pipeline


@pytest.fixture(scope="module")
def pipeline() -> FluxKontextPipeline:
    """The smallest real one: 16 px, an autoencoder of factor 2, text encoders and tokenizers made here."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    end = vocabulary["<|endoftext|>"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcdefgh")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        t5 = T5Config(vocab_size=len(pieces), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
        pipe = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=AutoencoderKL(
                block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, mid_block_add_attention=False,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                sample_size=16, shift_factor=0.0, scaling_factor=1.0,
            ),
            text_encoder=CLIPTextModel(clip),
            tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
            text_encoder_2=T5EncoderModel(t5),
            tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0),
            transformer=FluxTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
            ),
        )  # fmt: skip
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.transformer):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: FluxKontextPipeline, **keywords: Any) -> Tensor:
    photo = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    return pipe(
        image=photo, prompt="a face", num_inference_steps=5, height=16, width=16, max_area=256, _auto_resize=False,
        num_images_per_prompt=3, max_sequence_length=8, output_type="latent",
        generator=torch.Generator().manual_seed(0), **keywords,
    ).images  # fmt: skip


def test_a_stock_pipeline_rolls_out_and_its_steps_re_evaluate_exactly(pipeline: FluxKontextPipeline) -> None:
    parent = pipeline.scheduler
    plain = generate(pipeline)
    assert plain.shape == (3, 16, 16)
    try:
        ours = DPGScheduler.from_config(parent.config)
        pipeline.scheduler = ours
        assert torch.equal(generate(pipeline), plain)

        ours.set_anchor(torch.zeros(1, 16, 16))
        ours.draw(3, record=True, generator=torch.Generator().manual_seed(5))
        conditions: list[dict[str, Tensor]] = []
        handle = pipeline.transformer.register_forward_pre_hook(lambda module, args, kwargs: conditions.append(kwargs), with_kwargs=True)
        rolled = generate(pipeline)
        handle.remove()
        assert not torch.equal(rolled, plain)
        assert [taken.index for taken in ours.trajectory] == ours.drawn_steps and len(ours.drawn_steps) == 3

        parameter = pipeline.transformer.proj_out.weight
        for taken in ours.trajectory:
            condition = dict(conditions[taken.index])
            reference = condition["hidden_states"][:, 16:]
            condition["hidden_states"] = torch.cat([taken.x, reference], dim=1)
            ratio = taken.log_ratio(pipeline.transformer(**condition)[0][:, :16])
            assert ratio.tolist() == [0, 0, 0]
            (gradient,) = torch.autograd.grad(ratio[0], parameter)
            assert torch.isfinite(gradient).all() and gradient.abs().max() > 0

        ours.clear_draw()
        assert torch.equal(generate(pipeline), plain)
    finally:
        pipeline.scheduler = parent


def test_saved_with_the_parent_a_pipeline_loads_and_ours_comes_back(pipeline: FluxKontextPipeline, tmp_path: Path) -> None:
    parent = pipeline.scheduler
    plain = generate(pipeline)
    try:
        ours = DPGScheduler.from_config(parent.config, eta=0.4, segments=2)
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
        pipeline.save_pretrained(tmp_path)
    finally:
        pipeline.scheduler = parent
    loaded = FluxKontextPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler
    loaded.scheduler = DPGScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert (loaded.scheduler.config.eta, loaded.scheduler.config.segments) == (0.4, 2)
    assert loaded.scheduler.config.use_dynamic_shifting is True
    assert torch.equal(generate(loaded), plain)
