"""`blind-test make`: pictures of several methods become a study whose files say nothing about where they came from."""

import json
import os
import random
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.blind_test.options import MakeConfig
from benchmarks.blind_test.study import CONSENT, FILE, PICTURES, VOTES, Photo, Study
from benchmarks.blind_test.vote_store import count_votes
from portraitkit.config import config_to_dict
from portraitkit.errors import DataError, ImageError, RunFolderError
from portraitkit.files.atomic import replacing_folder, writing
from portraitkit.files.jsonl import read_objects, write_lines
from portraitkit.pictures import list_images, matched_name
from portraitkit.pictures.images import read_image, resize, within, write_image
from portraitkit.report.page import plural

Picture = Float[Tensor, "3 h w"]
ASPECT_TOLERANCE = 0.01
QUARANTINE = "skipped.jsonl"


def make_study(config: MakeConfig) -> int:
    """Match, check, re-encode and write the study in one piece; returns 0.

    Every picture is decoded by the one decoder and encoded anew without any metadata, under a random name, at a size common to all
    versions of the photo, with the same time stamp: neither name, size, EXIF nor date tells a method.
    """
    console = Console(stderr=True, highlight=False)
    out = config.output_dir
    _check_target(out, config.overwrite)
    folders = config.methods | ({"(reference)": config.reference} if config.reference else {})
    pictures = {name: _by_stem(folder) for name, folder in folders.items()}
    everything = sorted(set().union(*pictures.values()))
    names = [name for name in everything if all(name in files for files in pictures.values())]
    if not names:
        raise DataError(f"{', '.join(pictures)}: have no file name in common; name the pictures of one photo alike in every folder")
    lacking = {name: [method for method, files in pictures.items() if name not in files] for name in everything}
    skipped = [{"photo": name, "reason": f"missing in {', '.join(methods)}"} for name, methods in lacking.items() if methods]
    groups = read_groups(config.metadata, reversed(folders.values()), config.groups)
    with writing(out), replacing_folder(out) as partial:
        (partial / PICTURES).mkdir()
        photos = []
        for name in track(names, "pictures", console=console, transient=True):
            versions = {method: files[name] for method, files in pictures.items()}
            try:
                photos.append(_write_photo(partial / PICTURES, name, versions, groups.get(name, {}), config))
            except ImageError as error:
                skipped.append({"photo": name, "reason": str(error)})
                if len(skipped) >= 5:
                    _check_skipped(skipped, len(names), config)
        _check_skipped(skipped, len(photos), config)
        random.Random(config.seed).shuffle(photos)
        _write_texts(partial, config, photos, skipped)
        _check_target(out, config.overwrite)  # another process may have made one meanwhile
    _say(console, config, len(photos), skipped, groups)
    return 0


def _say(console: Console, config: MakeConfig, photos: int, skipped: list[dict[str, str]], groups: Mapping[str, object]) -> None:
    out, pairs = config.output_dir, len(config.methods) * (len(config.methods) - 1) // 2
    length = f"{config.photos_per_rater} comparisons and {config.attention_checks} attention checks a rater"
    lines = [f"skipped {row['photo']}: {row['reason']}" for row in skipped[:5]]
    lines += [f"{len(skipped)} photos skipped, all named in {out / QUARANTINE}"] if skipped else []
    lines.append(f"{out}: {plural(photos, 'photo')}, {plural(pairs, 'pair')} of methods, {length}")
    alike = [name for name, folder in config.methods.items() if config.reference and folder.samefile(config.reference)]
    lines += [f"not blind: --method {name} is also the --reference, which raters see while they hold O" for name in alike]
    lines.append(f"groups: {'recorded' if groups else 'none recorded'}; edit {out / CONSENT}, then: blind-test serve {out}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True, style="yellow" if line.startswith("not blind") else None)


def _check_target(out: Path, overwrite: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RunFolderError(f"{out}: is no folder; choose another --output-dir")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / FILE).is_file():
        raise RunFolderError(f"{out}: holds files that are no study; choose another --output-dir or empty it")
    if (out / VOTES).is_file() and (votes := count_votes(out / VOTES)):
        raise RunFolderError(f"{out}: holds a study with {votes} votes, which are never replaced; choose another --output-dir")
    if not overwrite:
        raise RunFolderError(f"{out}: holds another study; use --overwrite or another --output-dir")


def _by_stem(folder: Path) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for path in list_images(folder, flat=True):
        name = matched_name(path.stem)
        if name in out:
            raise DataError(f"{folder}: {out[name].name} and {path.name} have one name; keep one of them")
        out[name] = path
    if not out:
        raise DataError(f"{folder}: holds no pictures")
    return out


def read_groups(path: Path | None, folders: Iterable[Path], columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """File name without suffix -> column -> value, from a file or, without one, from the first folder that has a metadata.jsonl; nothing
    where none has. Columns that a row lacks or that are null are left out.
    DataError: a row is no JSON object with a text file_name, a value is neither text nor number, or a name comes twice; the line's
    number is named."""
    path = path or next((file for folder in folders if (file := folder / "metadata.jsonl").is_file()), None)
    if path is None:
        return {}
    out: dict[str, dict[str, str]] = {}
    for number, row in read_objects(path):
        where = f"{path} line {number}"
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: needs a text file_name")
        name = matched_name(Path(row["file_name"]).stem)
        if name in out:
            raise DataError(f"{where}: {name} was described before; keep one row a photo")
        values = {column: row[column] for column in columns if row.get(column) is not None}
        for column, value in values.items():
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise DataError(f"{where}: {column} {value!r}: must be text or a whole number")
        out[name] = {column: str(value) for column, value in values.items()}
    return {name: values for name, values in out.items() if values}


def _check_skipped(skipped: list[dict[str, str]], photos: int, config: MakeConfig) -> None:
    if not photos or len(skipped) > config.max_unusable * (photos + len(skipped)):
        named = "; ".join(f"{row['photo']}: {row['reason']}" for row in skipped[:5]) + ("; .." if skipped[5:] else "")
        raise DataError(f"{len(skipped)} photos had to be set aside, more than --max-unusable {config.max_unusable:g} allows: {named}")


def _write_photo(folder: Path, name: str, files: Mapping[str, Path], groups: dict[str, str], config: MakeConfig) -> Photo:
    """All versions at one size: that of the smallest, and at most --max-side."""
    pictures = {key: read_image(path).pixels for key, path in files.items()}
    sizes = {key: (int(picture.shape[1]), int(picture.shape[2])) for key, picture in pictures.items()}
    height, width = min(sizes.values(), key=lambda size: size[0] * size[1])
    for key, (one_height, one_width) in sizes.items():
        if abs(one_width / one_height / (width / height) - 1) > ASPECT_TOLERANCE:
            raise ImageError(f"{files[key]}: {one_width}x{one_height} px, another version has {width}x{height}; crop them alike")
    pictures = {key: within(resize(picture, (height, width)), config.max_side) for key, picture in pictures.items()}
    original = pictures.get("(reference)", next(iter(pictures.values())))
    to_write = pictures | {"(spoiled)": spoil(original)}
    if "(reference)" not in pictures:
        to_write["(original)"] = original
    tokens = {key: secrets.token_urlsafe(16) for key in to_write}
    for key in secrets.SystemRandom().sample(list(to_write), len(to_write)):
        path = folder / f"{tokens[key]}.{config.image_format}"
        write_image(path, to_write[key])
        os.utime(path, (0, 0))
    versions = {method: tokens[method] for method in config.methods}
    reference = tokens.get("(reference)")
    return Photo(name, versions, reference or tokens["(original)"], tokens["(spoiled)"], reference, groups)


def spoil(picture: Picture) -> Picture:
    """A copy that nobody can prefer: blurred to a fourteenth of its size, flat and dull. RGB in [0, 1]."""
    height, width = picture.shape[1:]
    small = resize(picture, (max(2, height // 14), max(2, width // 14)))
    flat = 0.35 + 0.45 * (small - small.mean())
    return resize(flat.clamp(0, 1), (height, width))


def _write_texts(folder: Path, config: MakeConfig, photos: Sequence[Photo], skipped: list[dict[str, str]]) -> None:
    study = Study(
        folder=folder,
        title=config.title.strip(),
        question=config.question.strip(),
        methods=tuple(config.methods),
        photos=tuple(photos),
        photos_per_rater=config.photos_per_rater,
        attention_checks=config.attention_checks,
        image_format=config.image_format,
        seed=config.seed,
    )
    (folder / FILE).write_text(json.dumps(study.to_dict(), indent=1) + "\n", encoding="utf-8")
    settings = config_to_dict(config) | {"command": sys.argv}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    count = config.photos_per_rater + config.attention_checks
    minutes = plural(max(1, round(count * 8 / 60)), "minute")
    consent = Path(__file__).with_name("templates") / CONSENT
    (folder / CONSENT).write_text(consent.read_text(encoding="utf-8").format(minutes=minutes, count=count), encoding="utf-8")
    if skipped:
        write_lines(folder / QUARANTINE, skipped)
