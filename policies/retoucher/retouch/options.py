"""Options of `retouch-portrait`, and how much of a retouch is applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from policies.retoucher.config import BackboneOptions
from portraitkit.config import AtLeast1, Options, Port, Positional, Range, Seed, Share
from portraitkit.errors import ConfigError

ALIGNED = Path(__file__).parents[1] / "backbones/embedded/lora"
"""The embedded retoucher's own adapter; recipe.json there says how it was aligned."""
EMBEDDED_STEPS = 1
"""Sampling steps of the embedded retoucher: more of them remove less and change more (docs/measurements/retoucher.md)."""

WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Controls(Options):
    """What is done to a face, each from 0 (nothing) to 1 (all of it)."""

    blemishes: Share = 1.0
    """How much of spots is removed."""
    tone: Share = 0.4
    """How far blotches and redness are evened; the colour of the face as a whole stays."""
    texture: Share = 0.3
    """How far fine unevenness between the size of a spot and that of a pore is softened; pores stay."""
    moles: Literal["keep", "remove"] = "keep"
    """Moles and freckles, spots that take red light as pigment does: keep, or remove like blemishes."""
    strength: Annotated[float, Range(ge=0, le=1, rule="must be in [0, 1], the share of the edit that is applied")] = 1.0
    """Share of all this that is applied: 0 leaves the photo as it is."""
    children: bool = False
    """The faces are children's: blemishes at most, no tone, no texture and no moles. Age is never guessed."""


@dataclass(frozen=True)
class RetouchConfig(BackboneOptions, Controls):
    """Retouch every face of a photo, or of every photo in a folder, and nothing else in the picture."""

    source: Annotated[Path | None, Positional("IN")] = None
    """A photo, or a folder of photos."""
    target: Annotated[Path | None, Positional("OUT")] = None
    """Where to write: a file or a folder; a folder if IN is one."""
    serve: bool = False
    """In place of IN and OUT: a page on this machine on which photos are dropped, with a slider for each of the controls."""
    host: str = "127.0.0.1"
    """Address of the page. On any other than this machine's own, it opens by a link with a key alone."""
    port: Port = 8770
    """Port of the page; 0 takes any free one."""
    adapter: str | None = None
    """Folder with the pytorch_lora_weights.safetensors that align-retoucher wrote, such as runs/demo; none: the base. If not given, the
    embedded retoucher has its own, any other model none."""
    num_steps: AtLeast1 = 28
    """Sampling steps; 1 with the embedded retoucher."""
    seed: Seed = 0
    """Of the initial noise, the same for every face."""
    min_face: Annotated[int | None, Range(ge=1, rule="at least 1 pixel")] = None
    """Smallest side of a face in pixels; smaller ones are left as they are. If not given 32, or a fortieth of the photo's longer side."""
    overwrite: bool = False
    """Replace files that are there already."""

    def check(self) -> None:
        """IN and OUT, or the page."""
        if self.serve and self.source is not None:
            raise ConfigError(f"--serve with IN {self.source}: the page takes its photos itself; leave IN and OUT out")
        if not self.serve and self.target is None:
            raise ConfigError("IN and OUT are needed: a photo and where to write it, such as me.jpg retouched.jpg; or --serve for the page")
        idle = {"overwrite": "--serve writes no file"} if self.serve else dict.fromkeys(("host", "port"), "does nothing without --serve")
        if self.children:
            idle |= dict.fromkeys(("tone", "texture", "moles"), "--children leaves these of a child alone")
        for name, why in idle.items():
            if (value := getattr(self, name)) not in (getattr(RetouchConfig, name), 0.0):
                shown = "" if value is True else f" {value:g}" if isinstance(value, float) else f" {value}"
                raise ConfigError(f"--{name}{shown}: {why}; leave it out")

    @classmethod
    def revise(cls, values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """With the embedded retoucher, its own number of steps."""
        chosen = cls.chosen(values, typed)
        embedded = chosen["backbone"] == "tiny" and chosen["model"] is None and "num_steps" not in values
        return super().revise(values, typed) | ({"num_steps": EMBEDDED_STEPS} if embedded else {})

    def smallest_face(self, height: int, width: int) -> int:
        """Of a photo of this size, in pixels; to look for ever smaller ones takes a large photo most of its time."""
        return self.min_face or max(32, max(height, width) // 40)

    @property
    def lora(self) -> Path | None:
        """Where the adapter is; None for the base alone."""
        if self.adapter is None:
            return ALIGNED if self.backbone == "tiny" and self.model is None else None
        return None if self.adapter == "none" else Path(self.adapter)
