"""What is measured: the pictures of each method, matched by name with the untouched photos, the references and the people's groups."""

import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from portraitkit.errors import ConfigError, DataError
from portraitkit.files.jsonl import read_objects
from portraitkit.pictures.images import SUFFIXES

GROUPS = ("age_band", "gender", "skin_tone")
MAX_UNPACKED = 20 * 2**30


@dataclass(frozen=True)
class Item:
    """One picture of one method.

    Attributes:
        name: shared by the pictures of one photo.
        method: whose picture it is.
        path: of the picture.
        source: of the untouched photo.
        reference: of the known good retouch.
    """

    name: str
    method: str
    path: Path
    source: Path | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class Inputs:
    """Everything to be measured.

    Attributes:
        items: sorted by name, then in the methods' order.
        methods: in the order given.
        groups: name -> group -> value, from the metadata.jsonl of the photos, else of the references, else of a method.
        sets: pictures of the folder that set metrics compare with.
        notes: what was left out, one line each.
    """

    items: list[Item]
    methods: list[str]
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sets: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """Pictures by name, and what a metadata.jsonl says of them."""

    pictures: Mapping[str, Path]
    anchors: Mapping[str, Path] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_folder(path: Path, unpack: Path) -> Folder:
    """The pictures of a folder, a zip file, or a data set (a folder with metadata.jsonl).

    Names are paths below the folder without their suffix; hidden files are left out.

    Args:
        path: of the folder or the zip file.
        unpack: where a zip file is unpacked to.

    Raises:
        ConfigError: no such folder or file.
        DataError: nothing to read, two pictures of one name, a bad archive or a bad metadata.jsonl.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        path = _unpack(path, unpack)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder or zip file; give one with pictures, or retoucher:BACKBONE")
    metadata = path / "metadata.jsonl"
    if metadata.is_file():
        return _data_set(path, metadata)
    pictures: dict[str, Path] = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in inside.parts) and file.is_file():
            _add(pictures, inside.with_suffix("").as_posix(), file)
    if not pictures:
        raise DataError(f"{path}: holds no pictures; give a folder with {', '.join(SUFFIXES)}")
    return Folder(pictures)


def _add(pictures: dict[str, Path], name: str, file: Path) -> None:
    if name in pictures:
        raise DataError(f"{file}: {pictures[name].name} has the same name without its suffix; pictures are matched by it: rename one")
    pictures[name] = file


def _data_set(folder: Path, metadata: Path) -> Folder:
    pictures: dict[str, Path] = {}
    anchors: dict[str, Path] = {}
    groups: dict[str, dict[str, str]] = {}
    for number, row in read_objects(metadata):
        where = f"{metadata} line {number}"
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: needs a string file_name")
        picture = _inside(folder, row["file_name"], where)
        name = PurePosixPath(row["file_name"]).with_suffix("").as_posix()
        _add(pictures, name, picture)
        if isinstance(row.get("anchor_file_name"), str):
            anchors[name] = _inside(folder, row["anchor_file_name"], where)
        groups[name] = {group: str(row[group]) for group in GROUPS if row.get(group) not in (None, "")}
    if not pictures:
        raise DataError(f"{metadata}: holds no rows")
    return Folder(pictures, anchors, groups)


def _inside(folder: Path, name: str, where: str) -> Path:
    shown = repr(name if len(name) <= 100 else f"{name[:97]}...")
    try:
        resolved = (folder / name).resolve()
        exists = resolved.is_file()
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise DataError(f"{where}: {shown} is no file name ({error.strerror if isinstance(error, OSError) else error})") from error
    if not resolved.is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {shown} leaves the data folder; use paths below it")
    if not exists:
        raise DataError(f"{where}: {shown} does not exist in {folder}")
    return folder / name


def _unpack(path: Path, target: Path) -> Path:
    """The pictures and the metadata of an archive, unpacked; nothing leaves the target, links are not followed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            total = sum(entry.file_size for entry in entries)
            if total > MAX_UNPACKED:
                raise DataError(f"{path}: {total / 2**30:.0f} GiB unpacked, at most {MAX_UNPACKED / 2**30:.0f}; unpack it yourself")
            shutil.rmtree(target, ignore_errors=True)
            for entry in entries:
                inside = PurePosixPath(entry.filename)
                if inside.is_absolute() or ".." in inside.parts or "\\" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
                    raise DataError(f"{path}: entry {entry.filename!r} leaves the archive's folder; such archives are refused")
                if inside.suffix.lower() in SUFFIXES or inside.name == "metadata.jsonl":
                    archive.extract(entry, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); make the archive again") from error
    inner = [child for child in target.iterdir() if not child.name.startswith(("__MACOSX", "."))] if target.is_dir() else []
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else target


def match(
    folders: Mapping[str, Folder], source: Folder | None, reference: Folder | None, sets: tuple[Path, ...] = (), limit: int | None = None
) -> Inputs:
    """Pictures of all methods, matched by name.

    Args:
        folders: of each method.
        source: the untouched photos; pictures without one are left out and counted.
        reference: the known good retouches; where None, the anchors of the photos' data set.
        sets: of the set metrics.
        limit: photos at most, the first by name.

    Raises:
        DataError: no picture is left.
    """
    references = reference.pictures if reference else (source.anchors if source else {})
    names = sorted(set().union(*(folder.pictures for folder in folders.values())))
    notes = []
    if source is not None:
        strangers = [name for name in names if name not in source.pictures]
        if strangers:
            notes.append(f"{len(strangers)} names have no photo of that name and were left out, for example {strangers[0]}")
        names = [name for name in names if name in source.pictures]
    names = names[:limit]
    if references:
        lacking = [name for name in names if name not in references]
        if lacking:
            notes.append(f"{len(lacking)} of {len(names)} photos have no reference of their name, for example {lacking[0]}")
    items = []
    for method, folder in folders.items():
        lacking = [name for name in names if name not in folder.pictures]
        if lacking:
            notes.append(f"{method} lacks {len(lacking)} of {len(names)} pictures, for example {lacking[0]}")
    for name in names:
        photo = source.pictures[name] if source else None
        for method, folder in folders.items():
            if name in folder.pictures:
                items.append(Item(name, method, folder.pictures[name], photo, references.get(name)))
    if not items:
        raise DataError("no picture of any method matches a photo by name; names without suffix must be the same")
    known: dict[str, dict[str, str]] = {}
    for folder in (source, reference, *folders.values()):  # who comes first is believed
        for name, groups in (folder.groups if folder else {}).items():
            known[name] = {**groups, **known.get(name, {})}
    known = {name: known[name] for name in names if known.get(name)}
    return Inputs(items, list(folders), known, sets, tuple(notes))
