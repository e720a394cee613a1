"""Every option of `python -m tools.bench.gpu.main`. The docstring under a field is its help text."""

from dataclasses import dataclass
from typing import Literal

from portraitkit.config import Options
from portraitkit.errors import ConfigError

RECIPE, VLM_RECIPE = "dpg_kontext_1x80gb", "makeup_7b"
"""Whose settings are measured; the options change sizes."""


@dataclass(frozen=True)
class GpuBenchConfig(Options):
    """Measure what real sizes cost on a GPU, random weights: FLUX.1 Kontext by DPG and by all-step Flow-GRPO, Qwen2.5-VL-7B by GRPO."""

    output_dir: str = "runs/gpu-bench"
    """Run folder: results.json, and results.md to be pasted into docs/measurements/speed.md."""
    overwrite: bool = False
    """Replace the run that --output-dir holds."""
    tiny: bool = False
    """The same code with the embedded architectures, on the CPU unless --device says otherwise: a check of the code, no measurement."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda, with --tiny cpu. Of several GPUs, CUDA_VISIBLE_DEVICES=0 chooses one."""
    parts: tuple[Literal["retoucher", "vlm"], ...] = ("retoucher", "vlm")
    """What is measured."""
    seed: int = 0
    """Of weights, noise, drawn steps and answers."""

    pixels: tuple[int, ...] = ()
    """Sides of the retoucher's pictures; 512 1024 if not given, with --tiny 64 128."""
    group: int = 4
    """Candidates of a group; all are updated at once."""
    steps: int = 10
    """T, sampling steps."""
    rank: int = 32
    """Of the retoucher's LoRA: on FLUX.1 Kontext 342 modules."""
    groups: int = 1
    """Groups measured for each method, after a short one to warm up; seconds are their median, evaluations their mean."""

    vlm_side: int | None = None
    """Side of the square picture in a prompt; 616 if not given, with --tiny 64."""
    vlm_prompts: int = 1
    """Prompts of an update."""
    vlm_group: int = 8
    """Answers to a prompt."""
    vlm_tokens: int = 128
    """Tokens of an answer: all are that long."""
    vlm_updates: int = 4
    """Updates, the first of which warms up; seconds are the median of the others."""

    def check(self) -> None:
        """Refuse impossible values before any model is made.

        Raises:
            ConfigError: a value is out of range.
        """
        least = {"group": 2, "steps": 3, "rank": 1, "groups": 1, "seed": 0}
        least |= {"vlm_prompts": 1, "vlm_group": 2, "vlm_tokens": 2, "vlm_updates": 2}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {smallest} or more")
        for side in self.pixels:
            if side < 16 or side % 16:
                raise ConfigError(f"--pixels {side}: must be a multiple of 16, such as 512")
        if self.vlm_side is not None and self.vlm_side < 28:
            raise ConfigError(f"--vlm-side {self.vlm_side}: must be 28 or more, the side of a token")
        if not self.parts:
            raise ConfigError("--parts: name retoucher, vlm or both")
        if self.device == "cpu" and not self.tiny:
            raise ConfigError("--device cpu: real sizes need a GPU; use --tiny for the same code on the CPU")

    @property
    def where(self) -> str:
        """The device."""
        return self.device if self.device != "auto" else "cpu" if self.tiny else "cuda"

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the retoucher's pictures."""
        return self.pixels or ((64, 128) if self.tiny else (512, 1024))

    @property
    def vlm_picture(self) -> int:
        """Side of a prompt's picture."""
        return self.vlm_side or (64 if self.tiny else 616)
