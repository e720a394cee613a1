"""`make-preferences build --generators rollout`: retouches as a policy makes them, and what is verifiable of each.

A group is one photo, one policy and several noises, as training compares them. The policy is the embedded retoucher at a stage of its
training, drawn for each group: the base, half of the committed LoRA, all of it; and so is the sampler: the plain ODE from noises of their
own (DiffusionNFT, `retouch-portrait`), or one noise and a stochastic step (`dpg`). So the candidates of a group differ by as little as a
policy's own samples do, unlike those of `degradations`. The photo itself, untouched, is compared with them, too: a judge scores a policy's
sample beside it.
"""

from dataclasses import dataclass
from itertools import product

import torch

from policies.retoucher.backbones import load_backbone
from policies.retoucher.backbones.tiny import EMBEDDED, RESOLUTION
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.adapter import attach_adapter
from policies.retoucher.model.backbone import Backbone
from policies.retoucher.rollout import noise_of_groups, roll_out
from portraitkit.errors import ConfigError
from preference_data.generators import Candidate, GeneratorOptions, Subject
from preference_data.schema import Origin
from reward_models.photos import Photos
from reward_models.reward_set import verifiable_dimensions

STEPS, ETA = 4, 0.9
STAGES = {"base": 0.0, "half aligned": 0.5, "aligned": 1.0}
"""Stages of training and the share of the committed LoRA that they have."""
KINDS = tuple(product(STAGES, (True, False)))  # Stage, and whether the sampler is the plain ODE


@dataclass(frozen=True)
class Rollouts:
    """Groups of `size` rollouts of the embedded retoucher."""

    backbone: Backbone  # with the committed LoRA
    size: int
    prompt: str
    name: str = "rollout"

    @torch.no_grad()
    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; `count` is rounded up to whole groups."""
        case, made = subject.case, []
        if case.source.shape[-1] != RESOLUTION:
            raise ConfigError(f"--generators rollout: the embedded retoucher works at {RESOLUTION} px; add --resolution {RESOLUTION}")
        photos = Photos.build(*(part[None] for part in (case.source, case.mesh)), opacity=case.opacity[None], clean=case.clean[None])
        condition = self.backbone.condition(photos.source, self.prompt)
        for number in range(seed, seed + -(-count // self.size)):
            stage, plain = KINDS[number % len(KINDS)]
            self.backbone.transformer.set_adapters("default", weights=STAGES[stage])
            sampling = {"loss": "nft", "shared_noise": False} if plain else {"segments": 1, "eta": ETA}
            settings = RetoucherConfig.of(num_steps=STEPS, dpg=False, seed=number, **sampling)
            scheduler = settings.scheduler(self.backbone.sigmas(STEPS), 0)
            drawn = {"group_size": self.size, "shared_noise": not plain, "seed": number, "iteration": 0}
            noise = noise_of_groups(self.backbone, scheduler.drawn_steps, [0], **drawn)
            rollout = roll_out(self.backbone, condition, None, scheduler, noise, batch=self.size)
            decoded = self.backbone.decode(rollout.latents, condition.select(rollout.photo_of))
            pictures = torch.cat([decoded.cpu(), case.source[None]]).mul(255).round() / 255  # as the photos, and as files have them
            truth = verifiable_dimensions(pictures, photos, torch.zeros(len(pictures), dtype=torch.long))
            model = f"embedded, {stage}, {'ODE' if plain else 'SDE'}"
            origins = [Origin(self.name, seed=number, model=model)] * self.size + [Origin(self.name, model="none, the photo untouched")]
            made += [
                Candidate(picture, origin, group=f"rollout-{number}", truth={name: float(values[row]) for name, values in truth.items()})
                for row, (picture, origin) in enumerate(zip(pictures, origins, strict=True))
            ]
        return made


def open_rollouts(argument: str | None, options: GeneratorOptions) -> Rollouts:
    """The generator of `rollout[:SIZE]`, groups of two if no size is given.
    ConfigError: a size that is none, or a device that is not there."""
    if argument is not None and not (argument.isdecimal() and 2 <= int(argument) <= 64):
        raise ConfigError(f"--generators rollout:{argument}: the group's size must be from 2 to 64; write rollout, or rollout:4")
    backbone = load_backbone("tiny", None, None, options.device)
    attach_adapter(backbone, EMBEDDED / "lora")
    return Rollouts(backbone, int(argument or 2), options.prompt)


GENERATOR = open_rollouts
