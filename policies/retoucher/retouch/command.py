"""The command `retouch-portrait IN OUT`. What needs torch is imported once the arguments, and the files they name, are known to be good."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from policies.retoucher.backbones import check_backbone, load_backbone
from policies.retoucher.config import BackboneOptions
from portraitkit.config import AtLeast1, Range, Seed, load_config
from portraitkit.errors import ConfigError, FaceError, ImageError
from portraitkit.pictures import list_images

ALIGNED = Path(__file__).parents[1] / "backbones/embedded/lora"
"""The embedded retoucher's own adapter; recipe.json there says how it was aligned."""
EMBEDDED_STEPS = 1
"""Sampling steps of the embedded retoucher: more of them remove less and change more (docs/measurements/retoucher.md)."""
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
Job = tuple[Path, Path]


@dataclass(frozen=True)
class RetouchConfig(BackboneOptions):
    """Retouch every face of a photo, or of every photo in a folder, and nothing else in the picture."""

    source: Positional[Annotated[Path, arg(metavar="IN")]]
    """A photo, or a folder of photos."""
    target: Positional[Annotated[Path, arg(metavar="OUT")]]
    """Where to write: a file or a folder; a folder if IN is one."""
    adapter: str | None = None
    """Folder with the pytorch_lora_weights.safetensors that align-retoucher wrote, such as runs/demo; none: the base. If not given, the
    embedded retoucher has its own, any other model none."""
    num_steps: AtLeast1 = 28
    """Sampling steps; 1 with the embedded retoucher."""
    seed: Seed = 0
    """Of the initial noise, the same for every face."""
    strength: Annotated[float, Range(ge=0, le=1, rule="must be in [0, 1], the share of the edit that is applied")] = 1.0
    """Share of the edit that is applied: 0 leaves the photo as it is, 1 is the whole retouch."""
    min_face: Annotated[int, Range(ge=1, rule="at least 1 pixel")] = 32
    """Smallest side of a face in pixels; smaller ones are left as they are."""
    overwrite: bool = False
    """Replace files that are there already."""

    @classmethod
    def revise(cls, values: dict[str, Any], typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """With the embedded retoucher, its own number of steps."""
        chosen = cls.chosen(values, typed)
        embedded = chosen["backbone"] == "tiny" and chosen["model"] is None and "num_steps" not in values
        return super().revise(values, typed) | ({"num_steps": EMBEDDED_STEPS} if embedded else {})

    @property
    def lora(self) -> Path | None:
        """Where the adapter is; None for the base alone."""
        if self.adapter is None:
            return ALIGNED if self.backbone == "tiny" and self.model is None else None
        return None if self.adapter == "none" else Path(self.adapter)


def retouch_main(argv: list[str]) -> int:
    """Parse the arguments and retouch; returns the exit code: 0, or 2 where a photo of a folder failed.

    One photo: its first error ends the command, nothing is written. A folder: the other photos go on, failures are
    listed at the end.

    Raises:
        UserError: see `portraitkit.errors`.
    """
    config = load_config(RetouchConfig, argv, prog="retouch-portrait", example="me.jpg retouched.jpg")
    jobs = plan_jobs(config.source, config.target, overwrite=config.overwrite)
    check_backbone(config.backbone, config.model)
    if config.lora is not None:
        from policies.retoucher.model.adapter import read_adapter

        read_adapter(config.lora)
    print(f"loading the retoucher {config.backbone} ...", file=sys.stderr, flush=True)
    retouch = _retoucher(config)
    if not config.source.is_dir():
        print(retouch(*jobs[0]))
        return 0
    return _run_all(jobs, retouch)


def plan_jobs(source: Path, target: Path, *, overwrite: bool = False) -> list[Job]:
    """Which photo becomes which file. Nothing is written, no folder is made.

    Args:
        source: a photo or a folder of photos.
        target: a file or a folder; a path without the suffix of a picture is a folder.
        overwrite: whether a target may exist already.

    Returns:
        Pairs of photo and target, sorted by name. Targets keep their photo's name; what is read but not written, as a GIF, becomes a PNG.

    Raises:
        ImageError: no such photo, or a folder without photos.
        ConfigError: IN is OUT, OUT exists, OUT is a file where a folder is needed, or its suffix cannot be written.
    """
    if source.is_dir():
        photos = list_images(source, flat=True)
        if not photos:
            raise ImageError(f"{source}: no photos in this folder; give a photo, or a folder that holds some")
        if target.exists() and not target.is_dir():
            raise ConfigError(f"OUT {target}: is a file, but IN {source} is a folder; give a folder")
        jobs = [(photo, target / _file_name(photo)) for photo in photos]
    elif source.is_file():
        into_folder = target.is_dir() or not target.suffix
        jobs = [(source, target / _file_name(source) if into_folder else target)]
    else:
        raise ImageError(f"{source}: no such file or folder")
    _check_targets(jobs, overwrite=overwrite)
    return jobs


def _check_targets(jobs: list[Job], *, overwrite: bool) -> None:
    taken: dict[Path, Path] = {}
    for photo, target in jobs:
        if target.suffix.lower() not in WRITABLE:
            raise ConfigError(f"OUT {target}: cannot write {target.suffix}; use {', '.join(WRITABLE)}")
        if target.exists() and target.samefile(photo):
            raise ConfigError(f"OUT {target}: is the photo itself; give another file or folder, photos are never replaced")
        if target in taken:
            raise ConfigError(f"OUT {target}: {taken[target].name} and {photo.name} would both become it; rename one of them")
        taken[target] = photo
    existing = [target for _, target in jobs if target.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if existing[1:] else ""
        raise ConfigError(f"OUT {existing[0]}{more}: exists already; add --overwrite or give another place")


def _file_name(photo: Path) -> str:
    return photo.name if photo.suffix.lower() in WRITABLE else photo.with_suffix(".png").name


def _retoucher(config: RetouchConfig) -> Callable[[Path, Path], str]:
    """A function that retouches one photo and says in a line or more what it did.

    The backbone is loaded once, after the first photo's faces are found: its libraries take seconds to import.
    """
    from policies.retoucher.model.adapter import attach_adapter
    from policies.retoucher.model.loading import loading_options
    from policies.retoucher.retouch.faces import find_faces, retouch_faces
    from portraitkit.pictures.images import read_image
    from portraitkit.pictures.stored import write_edited

    options = {name: getattr(config, name) for name in ("prompt", "num_steps", "seed", "strength")}

    @cache
    def backbone() -> Any:
        loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
        if config.lora is not None:
            attach_adapter(loaded, config.lora)
        return loaded

    def retouch(photo: Path, target: Path) -> str:
        image = read_image(photo)
        faces = find_faces(image.pixels, config.min_face, photo)
        result = retouch_faces(image.pixels, faces, backbone(), **options)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"OUT {target.parent}: cannot be made a folder ({error.strerror}); give another") from error
        notes = (*image.warnings, *write_edited(image, result.pixels, target))
        count = "1 face" if result.faces == 1 else f"{result.faces} faces"
        lines = [f"{photo} -> {target}: {count} retouched"]
        lines += [f"  left as it is: {face}" for face in result.skipped]
        return "\n".join(lines + [f"  note: {note}" for note in notes])

    return retouch


def _run_all(jobs: list[Job], retouch: Callable[[Path, Path], str]) -> int:
    from rich.console import Console

    from portraitkit.runs.progress import progress_bar

    console = Console(highlight=False, markup=False, soft_wrap=True)
    failures = []
    with progress_bar(console) as bar:
        for photo, target in bar.track(jobs, description="retouching"):
            try:
                console.print(retouch(photo, target))
            except (ImageError, FaceError) as error:
                failures.append(str(error))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(jobs)} photos could not be retouched", file=sys.stderr)
    return 2 if failures else 0
