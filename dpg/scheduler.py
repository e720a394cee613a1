"""Dynamic Path Guidance and its sibling samplers as a plain diffusers scheduler (BeautyGRPO, arXiv 2603.01163).

    pipe.scheduler = DPGScheduler.from_config(pipe.scheduler.config)  # the parent to the bit, until told otherwise
    pipe.scheduler.set_anchor(packed_latents)                         # guidance, for rollouts in training only
    pipe.scheduler.draw(seed, record=True)                            # which steps are stochastic
    images = pipe(image=photo, prompt=prompt, ...).images
    for step in pipe.scheduler.trajectory:
        step.log_ratio(velocity)                                      # of the transformer at step.x, with gradients

diffusers finds a pipeline's scheduler by its class name in its own package, so a pipeline saved with this class does
not load. Save it with the parent, which keeps our settings in its configuration (and says that it ignores them), and
take ours from the same folder:

    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(folder)
    pipe = FluxKontextPipeline.from_pretrained(folder)
    pipe.scheduler = DPGScheduler.from_pretrained(folder, subfolder="scheduler")
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler, FlowMatchEulerDiscreteSchedulerOutput
from jaxtyping import Float
from torch import Tensor

from dpg.guidance import lambda_schedule, stochastic_steps
from dpg.sampler import Pull, Sampler, TakenStep

PARENTS = tuple(inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters)
"""Names of the parent's arguments."""


class DPGScheduler(FlowMatchEulerDiscreteScheduler):
    """The parent's Euler scheduler, with stochastic and guided steps where they are drawn.

    Before `draw`, at every step that is not drawn, and at drawn ones without noise and guidance, `step` is the parent's
    to the bit. Arguments up to `stochastic_sampling` are the parent's.

    Args:
        sampler: of the drawn steps, one of `dpg.sde.SAMPLERS`.
        eta: its noise strength.
        window: which steps are drawn, one of `dpg.guidance.WINDOWS`, with the four arguments below.
        segments: K of `segments`.
        window_start: first step of `window`; None draws it.
        window_width: steps of `window` and `sliding`.
        window_stride: steps that `sliding` moves by.
        window_every: iterations between two moves of `sliding`.
        lambda_kind: guidance schedule once an anchor is set, one of `dpg.guidance.SCHEDULES`.
        lambda_max: its clamp, in [0, 1].
        lambda_target: "anchor"; or "mean", the policy's own: guidance then attenuates the noise and pulls nowhere, with
            no anchor needed.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]
    timesteps: Tensor
    sigmas: Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        sampler: str = "flow_sde",
        eta: float | int = 0.7,
        window: str = "segments",
        segments: int = 3,
        window_start: int | None = 0,
        window_width: int = 2,
        window_stride: int = 1,
        window_every: int = 25,
        lambda_kind: str = "linear",
        lambda_max: float | int = 0.95,
        lambda_target: str = "anchor",
    ) -> None:
        parent_init: Any = super().__init__  # whose own types refuse some of its defaults
        parent_init(**{name: self.config[name] for name in PARENTS if name in self.config})
        # refuse impossible settings here rather than in the first rollout
        Sampler(sampler, eta).coefficients(0.5, 0.25)
        lambda_schedule(1, lambda_kind, lambda_max)
        if lambda_target not in ("anchor", "mean"):
            raise ValueError(f"lambda_target {lambda_target!r} is unknown; choose one of anchor, mean")
        self._window_steps(num_train_timesteps, seed=0, iteration=0)
        self.trajectory: list[TakenStep] = []
        """The drawn steps of the last rollout, if `draw` asked for a record."""
        self._anchor: Tensor | None = None
        self.clear_draw()

    def _window_steps(self, num_steps: int, seed: int, iteration: int, lambdas: list[float] | None = None) -> list[int]:
        config = self.config
        place = {name: config[f"window_{name}"] for name in ("start", "width", "stride", "every")}
        drawn = {"seed": seed, "iteration": iteration, "segments": config["segments"], "lambdas": lambdas}
        return stochastic_steps(config["window"], num_steps, **drawn, **place)

    def set_anchor(self, latents: Float[Tensor, "..."]) -> None:
        """Guide the drawn steps towards these latents, until `clear_anchor`.

        Args:
            latents: of a preferred retouch of the same photo, normalised and packed as the pipeline's own latents; one
                for each sample, or one (first dimension 1) for all.
        """
        self._anchor = latents.detach()

    def clear_anchor(self) -> None:
        """Drawn steps are plain stochastic ones again."""
        self._anchor = None

    def draw(
        self,
        seed: int = 0,
        *,
        iteration: int = 0,
        steps: Sequence[int] | None = None,
        record: bool = False,
        generator: torch.Generator | None = None,
        noise: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Make the coming rollouts stochastic at the steps that `seed` and `iteration` draw, until `clear_draw`.

        A pipeline call is one batch, so a group that shares a call shares its drawn steps.

        Args:
            seed: of the run; decides the steps.
            iteration: counts rollouts, from 0; decides the steps too.
            steps: the steps themselves, instead of those that the window draws.
            record: keep the drawn steps in `trajectory`; the first step after `set_timesteps` starts it anew.
            generator: for the noise, as stock pipelines pass none to `step`; None is torch's global one.
            noise: of each drawn step by its index, instead of a draw.

        Raises:
            ValueError: the configuration has a noise of its own (`stochastic_sampling`) or rising noise levels
                (`invert_sigmas`).
        """
        if self.config["stochastic_sampling"] or self.config["invert_sigmas"]:
            raise ValueError("stochastic_sampling and invert_sigmas must be False for drawn steps; set both to False")
        self._drawn, self._steps, self._record = (seed, iteration), steps, record
        self._generator, self._noise = generator, noise or {}

    def restart(self, *, anchor: Float[Tensor, "..."] | None, noise: Mapping[int, Tensor]) -> None:
        """Begin another recorded rollout at the same timesteps and drawn steps.

        Args:
            anchor: as in `set_anchor`; None for none.
            noise: as in `draw`.
        """
        self._step_index, self._begin_index = None, 0
        self._anchor = None if anchor is None else anchor.detach()
        self._record, self._noise = True, noise

    def clear_draw(self) -> None:
        """Every step is the parent's again."""
        self._drawn: tuple[int, int] | None = None
        self._steps: Sequence[int] | None = None
        self._record, self._generator = False, None
        self._noise: Mapping[int, Tensor] = {}

    @property
    def lambdas(self) -> list[float]:
        """Guidance weight of every step of the current timesteps; all 0 where an anchor is needed and none is set."""
        return self._lambdas("zero" if self._anchor is None and self.config["lambda_target"] == "anchor" else self.config["lambda_kind"])

    def _lambdas(self, kind: str) -> list[float]:
        return lambda_schedule(len(self.timesteps), kind, self.config["lambda_max"], sigmas=self.sigmas.tolist())

    @property
    def drawn_steps(self) -> list[int]:
        """Indices of the stochastic steps among the current timesteps; none before `draw`. An anchor changes none of them."""
        if self._drawn is None:
            return []
        if self._steps is not None:
            return list(self._steps)
        seed, iteration = self._drawn
        return self._window_steps(len(self.timesteps), seed, iteration, self._lambdas(self.config["lambda_kind"]))

    @property
    def sampler(self) -> Sampler:
        """The drawn steps' sampler on the current timesteps."""
        return Sampler(self.config["sampler"], self.config["eta"], self.sigmas[1].item())

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One step: the parent's, or at a drawn index the sampler's, guided if there is an anchor.

        Args:
            model_output: the velocity, any shape with the batch first.
            timestep: the current one of `timesteps`.
            sample: the latents, same shape.
            s_churn: ignored, as in the parent.
            s_tmin: ignored, as in the parent.
            s_tmax: ignored, as in the parent.
            s_noise: ignored, as in the parent.
            generator: for the noise; None is that of `draw`.
            per_token_timesteps: as in the parent, without drawn steps only.
            return_dict: as in the parent.

        Returns:
            The next sample in the dtype of `model_output`, as `prev_sample` or in a tuple.

        Raises:
            ValueError: `per_token_timesteps` in a rollout with drawn steps: they have one noise level per sample.
        """
        if self._drawn is not None and per_token_timesteps is not None:
            raise ValueError("per_token_timesteps must be None in a rollout with drawn steps; call clear_draw() first")
        if self.step_index is None:  # the first step of a rollout
            self.trajectory = []
        parent_step: Any = super().step  # diffusers types every float tensor as a torch.FloatTensor
        plain = parent_step(
            model_output,
            timestep,
            sample,
            s_churn=s_churn,
            s_tmin=s_tmin,
            s_tmax=s_tmax,
            s_noise=s_noise,
            generator=generator,
            per_token_timesteps=per_token_timesteps,
            return_dict=return_dict,
        )
        if self._drawn is None:
            return plain
        assert self.step_index is not None
        index = self.step_index - 1  # the parent has moved on
        lam = self.lambdas[index]
        unmoved = lam == 0 and (self.config["sampler"] == "ode" or self.config["eta"] == 0)  # a step as the parent takes it
        if index not in self.drawn_steps or (unmoved and not self._record):
            return plain
        pull = Pull(lam, self._anchor) if self.config["lambda_target"] == "anchor" else Pull(lam, target="mean")
        taken = self.sampler.take(
            sample,
            model_output,
            self.sigmas[index].item(),
            self.sigmas[index + 1].item(),
            noise=torch.zeros_like(sample) if unmoved else self._noise.get(index),
            pull=pull,
            generator=generator or self._generator,
            storage_dtype=model_output.dtype,
            index=index,
        )
        if self._record:
            self.trajectory.append(taken)
        if unmoved:
            return plain
        output: Any = FlowMatchEulerDiscreteSchedulerOutput
        return output(prev_sample=taken.x_next) if return_dict else (taken.x_next,)
