"""Finished retouches from a folder: files named as the photos, whatever made them."""

from pathlib import Path

import torch

from portraitkit.errors import ConfigError, DataError, ImageError
from portraitkit.faces.warp import sample
from portraitkit.images import list_images, read_image, resize
from preference_data.generators.base import Candidate, GeneratorOptions, Subject
from preference_data.schema import Origin

MAX_ASPECT_GAP = 0.01


class Folder:
    """Retouches `photo.png`, or several of them as `photo.1.png`, `photo.2.png`, of the photo `photo.jpg`."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.resolve().name
        self.files: dict[str, list[Path]] = {}
        for file in list_images(path):
            self.files.setdefault(file.stem, []).append(file)
            stem, _, number = file.stem.rpartition(".")
            if stem and number.isdigit():
                self.files.setdefault(stem, []).append(file)

    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; cut with the photo's own alignment.

        Raises:
            ImageError: a file cannot be read.
            DataError: a retouch has another aspect ratio than its photo, or the subject has no file.
        """
        if subject.path is None or subject.matrix is None or subject.frame is None:
            raise DataError(f"{subject.id}: the embedded people have no finished retouches; give a folder of photos")
        return [self._read(file, subject) for file in self.files.get(subject.path.stem, [])[:count]]

    def _read(self, file: Path, subject: Subject) -> Candidate:
        assert subject.matrix is not None and subject.frame is not None
        pixels = read_image(file).pixels
        height, width = subject.frame
        gap = (pixels.shape[1] / pixels.shape[2]) / (height / width) - 1
        if abs(gap) > MAX_ASPECT_GAP:
            raise DataError(
                f"{file}: {pixels.shape[2]}x{pixels.shape[1]} px has another aspect ratio than its photo ({width}x{height}); "
                "a retouch must show the same frame"
            )
        pixels = resize(pixels, subject.frame)
        side = subject.case.source.shape[-1]
        cut = sample(pixels[None], subject.matrix[None], side, outside="border", mode="bicubic")[0].clamp(0, 1)
        return Candidate(torch.round(cut * 255) / 255, Origin(self.name, model=file.name))


def open_folder(argument: str | None, options: GeneratorOptions) -> Folder:
    """The generator of `folder:PATH`.

    Raises:
        ConfigError: no path, no such folder, or no pictures in it.
    """
    if argument is None:
        raise ConfigError("--generators folder: needs the folder, as folder:PATH")
    try:
        made = Folder(Path(argument))
    except ImageError as error:
        raise ConfigError(f"--generators folder:{error}; give a folder of finished retouches") from error
    if not made.files:
        raise ConfigError(f"--generators folder:{argument}: holds no pictures")
    return made


GENERATOR = open_folder
