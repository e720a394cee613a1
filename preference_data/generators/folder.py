"""Finished retouches from a folder: files named as the photos, whatever made them."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import torch

from portraitkit.errors import ConfigError, DataError, ImageError
from portraitkit.faces.warp import sample
from portraitkit.pictures import list_images, matched_name
from portraitkit.pictures.images import read_image
from preference_data.generators import Candidate, GeneratorOptions, Subject
from preference_data.people.photos import fit_retouch
from preference_data.schema import Origin

NUMBERED = re.compile(r"(.+)\.([0-9]{1,9})")


class Folder:
    """Retouches `sub/photo.png`, or several of them as `sub/photo.1.png`, `sub/photo.2.png`, of the photo `sub/photo.jpg`.

    `path` is the folder of the retouches, `names` are relative to the folder `photos`.

    Raises:
        ConfigError: a file may be a retouch of two photos, or none is of any photo.
    """

    def __init__(self, path: Path, photos: Path, names: Sequence[str]) -> None:
        self.path, self.name, self.photos = path, path.resolve().name, photos
        self.files = match_retouches(path, names)
        if not self.files:
            raise ConfigError(f"--generators folder:{path}: holds no picture named as a photo of {photos}; a.png is a retouch of a.jpg")

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; cut with the photo's own alignment.

        Raises:
            ImageError: a file cannot be read.
            DataError: a retouch shows another frame, another person or its face elsewhere, or the subject is no photo.
        """
        if subject.path is None:
            raise DataError(f"{subject.id}: the embedded people have no finished retouches; give a folder of photos")
        assert subject.matrix is not None and subject.face is not None
        made, side = [], subject.case.source.shape[-1]
        for file in self.files.get(os.path.relpath(subject.path, self.photos), [])[:count]:
            pixels = fit_retouch(read_image(file).pixels, subject.face, file, "retouch")
            cut = sample(pixels[None], subject.matrix[None], side, outside="border", mode="bicubic")[0].clamp(0, 1)
            made.append(Candidate(torch.round(cut * 255) / 255, Origin(self.name, model=file.relative_to(self.path).as_posix())))
        return made


def match_retouches(folder: Path, names: Sequence[str]) -> dict[str, list[Path]]:
    """Whose retouches the pictures of a folder are: those at the photo's own path but for suffix and number, in the order of the numbers.

    A picture at the top of the folder may also belong to the one photo of that name, in whatever subfolder it is.

    Returns:
        Photo -> retouches. Pictures that are named as no photo are left out.

    Raises:
        ConfigError: a picture may belong to two photos.
        ImageError: no such folder.
    """
    places, stems = defaultdict[PurePath, list[str]](list), defaultdict[str, list[str]](list)
    for name in dict.fromkeys(map(os.path.normpath, names)):
        photo = PurePath(matched_name(name))
        places[photo.parent / photo.stem].append(name)
        stems[photo.stem].append(name)
    matched = defaultdict[str, list[tuple[int, Path]]](list)
    for file in _pictures(folder):
        place = PurePath(matched_name(str(file.relative_to(folder))))
        owners: dict[str, int] = {}
        numbered = NUMBERED.fullmatch(place.stem)  # the photo's name, or that and the number of the retouch
        for stem, number in ((place.stem, 0), *([(numbered[1], int(numbered[2]))] if numbered else [])):
            photos = places.get(place.parent / stem) or (stems.get(stem, []) if place.parent == PurePath() else [])
            owners |= dict.fromkeys(photos, number)
        if len(owners) > 1:
            one, other = list(owners)[:2]
            apart = PurePath(one).parent != PurePath(other).parent
            cure = f"lay the folder out as the photos are, as in {PurePath(one).parent / file.name}" if apart else "rename it, or a photo"
            raise ConfigError(f"--generators folder:{folder}: {place} may be a retouch of {one} or of {other}; {cure}")
        for name, number in owners.items():
            matched[name].append((number, file))
    return {name: [file for _, file in sorted(files)] for name, files in matched.items()}


def _pictures(folder: Path) -> Iterator[Path]:
    yield from list_images(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _pictures(path)


def open_folder(argument: str | None, options: GeneratorOptions) -> Folder:
    """The generator of `folder:PATH`; ConfigError for no path, no such folder, no photos, or a retouch that may be of two photos."""
    if argument is None:
        raise ConfigError("--generators folder: needs the folder, as folder:PATH")
    if not Path(argument).is_dir():
        raise ConfigError(f"--generators folder:{argument}: no such folder; give a folder of finished retouches")
    if options.photos is None:
        raise ConfigError(f"--generators folder:{argument}: the embedded people have no finished retouches; give a folder of photos")
    try:
        return Folder(Path(argument), options.photos, options.names)
    except ImageError as error:
        raise ConfigError(f"--generators folder:{error}; give a folder of finished retouches") from error


GENERATOR = open_folder
