"""DISFA (Mavadati et al. 2013): 27 subjects, one video each, 12 action units in intensities 0 to 5 for every frame.

Layout relied on (the same in several public loaders, among them OpenFace's scripts): `ActionUnit_Labels/SN001/SN001_au1.txt` with
lines `frame,intensity`, frames from 1; `Videos_LeftCamera/LeftVideoSN001_comp.avi`, with changing case. Extracted frames are taken
instead of the videos where they lie in `Images/SN001/<number>.jpg` or .png. A unit counts as present from intensity 2 on, as is
usual. There is no official split: the nine subjects of the third fold that most publications share are the test set. Unsure: videos may
have a frame more or less than the labels; frames without a label, and labels without a frame, are left out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from portraitkit.errors import DataError, ImageError
from preference_data.sources import Adapter, ReadOptions, Record, find, read_table

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy import ndarray

LAYOUT = "ActionUnit_Labels/SN001/SN001_au1.txt ... and Videos_LeftCamera/LeftVideoSN001_comp.avi, or Images/SN001/1.jpg"
UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
FOLD_3 = ("SN003", "SN004", "SN005", "SN007", "SN008", "SN017", "SN023", "SN025", "SN029")


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    labels = find(folder, LAYOUT, "ActionUnit_Labels")
    for subject in sorted(path for path in labels.iterdir() if path.is_dir()):
        intensities = _intensities(subject)
        frames = sorted(frame for frame in intensities if (frame - 1) % options.every == 0)
        for frame, picture in _pictures(folder, subject.name, frames):
            present = frozenset(unit for unit, value in intensities[frame].items() if value >= options.min_intensity)
            yield Record(
                f"{subject.name}-{frame:05d}",
                picture,
                units=present,
                split="test" if subject.name in FOLD_3 else "train",
                subject=subject.name,
                meta={"frame": frame, "intensities": {f"AU{unit}": value for unit, value in intensities[frame].items()}},
            )


def _intensities(subject: Path) -> dict[int, dict[int, int]]:
    """frame -> unit -> intensity; only frames that every unit labels."""
    found: dict[int, dict[int, int]] = {}
    for unit in UNITS:
        path = subject / f"{subject.name}_au{unit}.txt"
        for where, (frame, value) in read_table(path, 2, ","):
            if not frame.isdecimal() or value not in tuple("012345"):
                raise DataError(f"{where}: must be a frame's number and an intensity from 0 to 5")
            found.setdefault(int(frame), {})[unit] = int(value)
    return {frame: values for frame, values in found.items() if len(values) == len(UNITS)}


def _pictures(folder: Path, subject: str, frames: list[int]) -> "Iterator[tuple[int, Path | Callable[[], ndarray]]]":
    stills = folder / "Images" / subject
    if stills.is_dir():
        files = {int(path.stem): path for path in stills.iterdir() if path.stem.isdecimal()}
        yield from ((frame, files[frame]) for frame in frames if frame in files)
        return
    for camera in ("Left", "Right"):
        for place in (f"Videos_{camera}Camera", f"Video_{camera}Camera"):
            for video in sorted((folder / place).glob("*.avi")):
                if subject.lower() in video.stem.lower():
                    yield from read_frames(video, frames)
                    return
    raise DataError(f"{folder}: has neither Images/{subject} nor a video of {subject}; the folder must hold {LAYOUT}")


def read_frames(video: Path, frames: list[int]) -> "Iterator[tuple[int, Callable[[], ndarray]]]":
    """Frames of a video by their numbers from 1, as functions that give their pixels: one decoded frame is held at a time.

    Raises:
        ImageError: the video cannot be decoded.
    """
    import av
    from av.error import FFmpegError

    wanted = set(frames)
    try:
        with av.open(str(video)) as container:
            for number, frame in enumerate(container.decode(video=0), start=1):
                if number in wanted:
                    yield number, _later(frame)
                if number >= max(wanted, default=0):
                    return
    except FFmpegError as error:
        raise ImageError(f"{video}: cannot be decoded ({error}); download it again") from error


def _later(frame: "VideoFrame") -> "Callable[[], ndarray]":
    return lambda: frame.to_ndarray(format="rgb24")


ADAPTER = Adapter("disfa", LAYOUT, _read)
