"""The command `retouch-portrait IN OUT`. What needs torch is imported once the arguments are known to be good."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from portraitkit.errors import ConfigError, ImageError, UserError

if TYPE_CHECKING:
    from policies.retoucher.retouch.retouch_config import RetouchConfig

WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
Job = tuple[Path, Path]


def retouch_main(argv: list[str]) -> int:
    """Parse the arguments and retouch.

    One photo: its first error ends the command, nothing is written. A folder: the other photos go on, failures are
    listed at the end.

    Args:
        argv: what follows the command's name.

    Returns:
        The exit code: 0, or 2 where a photo of a folder failed.

    Raises:
        UserError: see `portraitkit.errors`.
    """
    from policies.retoucher.retouch.retouch_config import RetouchConfig
    from portraitkit.config import load_config

    config = load_config(RetouchConfig, argv, prog="retouch-portrait", example="me.jpg retouched.jpg --adapter runs/demo")
    jobs = plan_jobs(config.source, config.target, overwrite=config.overwrite)
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
        Pairs of photo and target, sorted by name. Targets keep their photo's name; a GIF becomes a PNG.

    Raises:
        ImageError: no such photo, or a folder without photos.
        ConfigError: IN is OUT, OUT exists, OUT is a file where a folder is needed, or its suffix cannot be written.
    """
    if source.is_dir():
        from portraitkit.pictures.images import list_images

        photos = list_images(source)
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
    return photo.with_suffix(".png").name if photo.suffix.lower() == ".gif" else photo.name


def _retoucher(config: "RetouchConfig") -> Callable[[Path, Path], str]:
    """A function that retouches one photo and says in a line or more what it did; the backbone is loaded here, once."""
    from policies.retoucher.retouch.faces import open_backbone, retouch_picture
    from portraitkit.pictures.images import read_image
    from portraitkit.pictures.stored import write_edited

    backbone = open_backbone(config)

    def retouch(photo: Path, target: Path) -> str:
        image = read_image(photo)
        result = retouch_picture(image.pixels, backbone, config, photo)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"OUT {target.parent}: cannot be made a folder ({error.strerror}); give another") from error
        notes = (*image.warnings, *write_edited(image, result.pixels, target))
        faces = "1 face" if result.faces == 1 else f"{result.faces} faces"
        lines = [f"{photo} -> {target}: {faces} retouched"]
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
            except UserError as error:
                failures.append(str(error))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(jobs)} photos could not be retouched", file=sys.stderr)
    return 2 if failures else 0
