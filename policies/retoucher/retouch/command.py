"""The command `retouch-portrait IN OUT`. What needs torch is imported once the arguments, and the files they name, are known to be good."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policies.retoucher.backbones import check_backbone, load_backbone
from policies.retoucher.retouch.options import WRITABLE, RetouchConfig
from portraitkit.config import load_config
from portraitkit.errors import ConfigError, FaceError, ImageError
from portraitkit.pictures import list_images, not_a_file

if TYPE_CHECKING:
    from torch import Tensor

    from policies.retoucher.retouch.faces import FacePlan, Faces

Job = tuple[Path, Path]


def retouch_main(argv: list[str]) -> int:
    """Parse the arguments and retouch; returns the exit code: 0, or 2 where a photo of a folder failed.

    One photo: its first error ends the command, nothing is written. A folder: the other photos go on, failures are
    listed at the end."""
    config = load_config(RetouchConfig, argv, prog="retouch-portrait", example="me.jpg retouched.jpg")
    jobs = plan_jobs(config.source, config.target, overwrite=config.overwrite) if config.source and config.target else []
    check_backbone(config.backbone, config.model)
    if config.lora is not None:
        from policies.retoucher.model.adapter import read_adapter

        read_adapter(config.lora)
    print(f"loading the retoucher {config.backbone} ...", file=sys.stderr, flush=True)
    analyse = analyser(config)
    if config.serve:
        from policies.retoucher.retouch.page_server import serve_page

        return serve_page(config, analyse)
    retouch = _retoucher(config, analyse)
    if config.source is not None and not config.source.is_dir():
        print(retouch(*jobs[0]))
        return 0
    from rich.console import Console

    from portraitkit.runs.terminal import progress_bar

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


def plan_jobs(source: Path, target: Path, *, overwrite: bool = False) -> list[Job]:
    """Which photo becomes which file. Nothing is written, no folder is made.

    Returns:
        Pairs of photo and target, sorted by name. Targets keep their photo's name; what is read but not written, as a GIF, becomes a PNG.

    Raises:
        ImageError: no such photo, or a folder without photos.
        ConfigError: IN is OUT, OUT exists, OUT is a file where a folder is needed, or its suffix or folder cannot be written.
    """

    def name_of(photo: Path) -> str:
        return photo.name if photo.suffix.lower() in WRITABLE else photo.with_suffix(".png").name

    if source.is_dir():
        photos = list_images(source, flat=True)
        if not photos:
            raise ImageError(f"{source}: no photos in this folder; give a photo, or a folder that holds some")
        if target.exists() and not target.is_dir():
            raise ConfigError(f"OUT {target}: is a file, but IN {source} is a folder; give a folder")
        jobs = [(photo, target / name_of(photo)) for photo in photos]
    elif source.is_file():
        into_folder = target.is_dir() or not target.suffix
        jobs = [(source, target / name_of(source) if into_folder else target)]
    else:
        raise ImageError(f"{source}: {not_a_file(source)}; give a photo, or a folder that holds some")
    taken: dict[Path, Path] = {}
    for photo, file in jobs:
        if file.suffix.lower() not in WRITABLE:
            raise ConfigError(f"OUT {file}: cannot write {file.suffix}; use {', '.join(WRITABLE)}")
        if file.exists() and file.samefile(photo):
            raise ConfigError(f"OUT {file}: is the photo itself; give another file or folder, photos are never replaced")
        if (other := taken.setdefault(file, photo)) is not photo:
            raise ConfigError(f"OUT {file}: {other.name} and {photo.name} would both become it; rename one of them")
    existing = [target for _, target in jobs if target.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if existing[1:] else ""
        raise ConfigError(f"OUT {existing[0]}{more}: exists already; add --overwrite or give another place")
    folder = next(path for path in jobs[0][1].parents if path.exists())
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"OUT {jobs[0][1]}: nothing can be written in {folder}; give another place")
    return jobs


def analyser(config: RetouchConfig) -> "Callable[[Tensor, Faces], Iterator[FacePlan]]":
    """The retoucher's one pass over the faces of a picture.

    The backbone is loaded once, after the first photo's faces are found: its libraries take seconds to import.
    """
    from policies.retoucher.model.adapter import attach_adapter
    from policies.retoucher.model.loading import loading_options
    from policies.retoucher.retouch.faces import take_apart

    @cache
    def backbone() -> Any:
        loaded = load_backbone(config.backbone, config.model, config.resolution, config.device, **loading_options(config))
        if config.lora is not None:
            attach_adapter(loaded, config.lora)
        return loaded

    def analyse(pixels: "Tensor", faces: "Faces") -> "Iterator[FacePlan]":
        return take_apart(pixels, faces, backbone(), prompt=config.prompt, num_steps=config.num_steps, seed=config.seed)

    return analyse


def _retoucher(config: RetouchConfig, analyse: "Callable[[Tensor, Faces], Iterator[FacePlan]]") -> Callable[[Path, Path], str]:
    """A function that retouches one photo and says in a line or more what it did."""
    from policies.retoucher.retouch.faces import apply_controls, find_faces
    from portraitkit.pictures.images import read_image
    from portraitkit.pictures.stored import write_edited

    def retouch(photo: Path, target: Path) -> str:
        image = read_image(photo, lean=True)
        faces = find_faces(image.pixels, config.smallest_face(*image.pixels.shape[1:]), photo)
        result = apply_controls(image.pixels, analyse(image.pixels, faces), config, skipped=faces.skipped)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"OUT {target.parent}: cannot be made a folder ({error.strerror}); give another") from error
        notes = (*image.warnings, *write_edited(image, result.strips(), target))
        count = "1 face" if result.faces == 1 else f"{result.faces} faces"
        lines = [f"{photo} -> {target}: {count} retouched"]
        lines += [f"  left as it is: {face}" for face in result.skipped]
        return "\n".join(lines + [f"  note: {note}" for note in notes])

    return retouch
