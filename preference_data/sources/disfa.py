"""DISFA (Mavadati et al. 2013): 27 subjects, one video each, 12 action units in intensities 0 to 5 for every frame.

Layout relied on (the same in several public loaders, among them OpenFace's scripts): `ActionUnit_Labels/SN001/SN001_au1.txt` with
lines `frame,intensity`, frames from 1; `Videos_LeftCamera/LeftVideoSN001_comp.avi`, with changing case. Extracted frames are taken
instead of the videos where they lie in `Images/SN001/<number>.jpg` or .png. A unit counts as present from intensity 2 on, as is
usual. There is no official split: the nine subjects of the third fold that most publications share are the test set. Unsure: videos may
have a frame more or less than the labels; frames without a label, and labels without a frame, are left out, counted and named. Numbers
that do not meet are refused: nothing shifts.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from portraitkit.errors import DataError, ImageError
from portraitkit.pictures import list_images
from preference_data.sources import Adapter, ReadOptions, Record, find, read_table, some_of

if TYPE_CHECKING:
    from numpy import ndarray

LAYOUT = "ActionUnit_Labels/SN001/SN001_au1.txt ... and Videos_LeftCamera/LeftVideoSN001_comp.avi, or Images/SN001/1.jpg"
UNITS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
FOLD_3 = ("SN003", "SN004", "SN005", "SN007", "SN008", "SN017", "SN023", "SN025", "SN029")


def _read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    labels = find(folder, LAYOUT, "ActionUnit_Labels")
    for subject in sorted(path for path in labels.iterdir() if path.is_dir()):
        intensities, partial = _intensities(subject)
        if partial:
            options.note(f"{subject}: frames {some_of(partial)} lack a label of some unit and are left out")
        frames = sorted(frame for frame in intensities if (frame - 1) % options.every == 0)
        for frame, picture in _pictures(folder, subject.name, [*intensities, *partial], frames, options.note):
            present = frozenset(unit for unit, value in intensities[frame].items() if value >= options.min_intensity)
            yield Record(
                f"{subject.name}-{frame:05d}",
                picture,
                units=present,
                split="test" if subject.name in FOLD_3 else "train",
                subject=subject.name,
                meta={"frame": frame, "intensities": {f"AU{unit}": value for unit, value in intensities[frame].items()}},
            )


def _intensities(subject: Path) -> tuple[dict[int, dict[int, int]], list[int]]:
    """frame -> unit -> intensity of the frames that every unit labels, and the other frames."""
    found: dict[int, dict[int, int]] = {}
    for unit in UNITS:
        path = subject / f"{subject.name}_au{unit}.txt"
        for where, (frame, value) in read_table(path, 2, ","):
            if not frame.isdecimal() or value not in tuple("012345"):
                raise DataError(f"{where}: must be a frame's number and an intensity from 0 to 5")
            if int(frame) < 1:
                raise DataError(
                    f"{where}: frame {frame}; DISFA counts frames from 1, so every label would be on the wrong frame: renumber them"
                )
            if unit in found.setdefault(int(frame), {}):
                raise DataError(f"{where}: labels frame {frame} a second time; leave one line a frame in")
            found[int(frame)][unit] = int(value)
    whole = {frame: values for frame, values in found.items() if len(values) == len(UNITS)}
    return whole, [frame for frame in found if frame not in whole]


def _pictures(
    folder: Path, subject: str, labelled: Collection[int], frames: list[int], note: Callable[[str], object]
) -> "Iterator[tuple[int, Path | Callable[[], ndarray]]]":
    stills = folder / "Images" / subject
    if stills.is_dir():
        pictures = list_images(stills)
        files = {int(path.stem): path for path in pictures if path.stem.isdecimal()}
        if len(files) < len(pictures):
            raise DataError(
                f"{stills}: holds {len(pictures)} pictures for {len(files)} frames; each must be called by its frame's number, as 1.jpg"
            )
        check_numbers(stills, labelled, files, note)
        yield from ((frame, files[frame]) for frame in frames if frame in files)
        return
    for camera in ("Left", "Right"):
        for place in (f"Videos_{camera}Camera", f"Video_{camera}Camera"):
            for video in sorted((folder / place).glob("*.avi")):
                if subject.lower() in video.stem.lower():
                    read = 0
                    for frame, picture in read_frames(video, frames):
                        read = frame
                        yield frame, picture
                    if missing := [frame for frame in frames if frame > read]:
                        note(f"{video}: ends before the labelled frames {some_of(missing)}, which are left out")
                    return
    raise DataError(f"{folder}: has neither Images/{subject} nor a video of {subject}; the folder must hold {LAYOUT}")


def check_numbers(folder: Path, labelled: Collection[int], pictures: Collection[int], note: Callable[[str], object]) -> None:
    """Refuse pictures that are numbered otherwise than their labels, and tell which labels have no picture.

    A few frames extracted, or a frame more or less at the end, is fine: then one kind holds all numbers of the other.

    Raises:
        DataError: a picture 0, or both kinds have numbers that the other lacks: each label would be on another frame.
    """
    bare, unseen = set(pictures) - set(labelled), set(labelled) - set(pictures)
    if 0 in pictures or (bare and unseen):
        raise DataError(
            f"{folder}: pictures {some_of(bare)} have no label and labels {some_of(unseen)} no picture; both must count frames from 1: "
            "renumber the pictures, or remove those that are no frames of the video"
        )
    if unseen:
        note(f"{folder}: {some_of(unseen)} labelled frames have no picture and are left out")


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
                    yield number, partial(frame.to_ndarray, format="rgb24")
                if number >= max(wanted, default=0):
                    return
    except FFmpegError as error:
        raise ImageError(f"{video}: cannot be decoded ({error}); download it again") from error


ADAPTER = Adapter("disfa", LAYOUT, _read)
