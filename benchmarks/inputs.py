"""From the options to the pictures of each method, matched by name with the untouched photos, the references and the people's groups.

Pictures lie in folders, archives and data sets, or come from retouchers that are run here, as the embedded one is.
"""

import hashlib
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from benchmarks.config import BenchmarkConfig
from benchmarks.weight_files import Digests
from portraitkit.errors import ConfigError, DataError, FaceError, ImageError
from portraitkit.files.atomic import write_text
from portraitkit.files.jsonl import read_objects
from portraitkit.pictures import OTHERS, READABLE, list_images, matched_name, pick_images
from portraitkit.pictures.images import read_image, write_image
from portraitkit.runs.shards import Shard
from preference_data.pair_set import check_inside

ADAPTER = "pytorch_lora_weights.safetensors"
EMBEDDED = 24
KINDS = ("input", "base", "aligned")
GROUPS = ("age_band", "gender", "skin_tone")
MAX_UNPACKED = 20 * 2**30


@dataclass(frozen=True)
class Item:
    """One picture of one method."""

    name: str  # shared by the pictures of one photo
    method: str  # whose picture it is
    path: Path  # of the picture
    source: Path | None = None  # of the untouched photo
    reference: Path | None = None  # of the known good retouch


@dataclass(frozen=True)
class Inputs:
    """Everything to be measured."""

    items: list[Item]  # sorted by name, then in the methods' order
    methods: list[str]  # in the order given
    # name -> group -> value, from the metadata.jsonl of the photos, else of the references, else of a method
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sets: tuple[Path, ...] = ()  # pictures of the folder that set metrics compare with
    notes: tuple[str, ...] = ()  # what was left out, one line each


@dataclass(frozen=True)
class Folder:
    """Pictures by name, and what a metadata.jsonl says of them."""

    pictures: Mapping[str, Path]
    anchors: Mapping[str, Path] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_folder(path: Path, unpack: Path) -> Folder:
    """The pictures of a folder, a zip file (unpacked into `unpack`), or a data set (a folder with metadata.jsonl).

    Names are paths below the folder without their suffix; hidden files are left out.
    ConfigError: no such folder or file.
    DataError: nothing to read, two pictures of one name, a bad archive or a bad metadata.jsonl."""
    if path.suffix.lower() == ".zip" and path.is_file():
        path = _unpack(path, unpack)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder or zip file; give one with pictures, or retoucher:BACKBONE")
    metadata = path / "metadata.jsonl"
    if metadata.is_file():
        return _data_set(path, metadata)
    pictures: dict[str, Path] = {}
    shown = [file for file in sorted(path.rglob("*")) if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    for file in pick_images(shown):
        _add(pictures, file.relative_to(path).with_suffix("").as_posix(), file)
    if not pictures:
        raise DataError(f"{path}: holds no pictures; give a folder with {', '.join(READABLE)}")
    return Folder(pictures)


def _add(pictures: dict[str, Path], name: str, file: Path) -> str:
    name = matched_name(name)
    if name in pictures:
        raise DataError(
            f"{file}: {pictures[name].name} has the same name without its suffix, perhaps in another Unicode form; pictures are matched by "
            "it: rename one"
        )
    pictures[name] = file
    return name


def _data_set(folder: Path, metadata: Path) -> Folder:
    pictures: dict[str, Path] = {}
    anchors: dict[str, Path] = {}
    groups: dict[str, dict[str, str]] = {}
    for number, row in read_objects(metadata):
        where = f"{metadata} line {number}"
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{where}: needs a string file_name")
        picture = _inside(folder, row["file_name"], where)
        name = _add(pictures, PurePosixPath(row["file_name"]).with_suffix("").as_posix(), picture)
        if (anchor := row.get("anchor_file_name")) is not None:
            anchors[name] = _inside(folder, anchor if isinstance(anchor, str) else repr(anchor), where)
        groups[name] = {group: str(row[group]) for group in GROUPS if row.get(group) not in (None, "")}
    if not pictures:
        raise DataError(f"{metadata}: holds no rows")
    return Folder(pictures, anchors, groups)


def _inside(folder: Path, name: str, where: str) -> Path:
    try:
        found = check_inside(folder.resolve(), name, "file_name")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return folder / name if (folder / name).exists() else found


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
                if inside.suffix.lower() in (*READABLE, *OTHERS) or inside.name == "metadata.jsonl":
                    archive.extract(entry, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); make the archive again") from error
    inner = [child for child in target.iterdir() if not child.name.startswith(("__MACOSX", "."))] if target.is_dir() else []
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else target


def match(
    folders: Mapping[str, Folder], source: Folder | None, reference: Folder | None, sets: tuple[Path, ...] = (), limit: int | None = None
) -> Inputs:
    """The pictures of each method's folder, matched by name, of the first `limit` photos. Pictures without an untouched photo in `source`
    are left out and counted. Without `reference`, the known good retouches are the anchors of the photos' data set.
    DataError: no picture is left."""
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
    groups: dict[str, dict[str, str]] = {}
    for folder in (source, reference, *folders.values()):  # who comes first is believed
        for name, values in (folder.groups if folder else {}).items():
            groups[name] = {**values, **groups.get(name, {})}
    groups = {name: groups[name] for name in names if groups.get(name)}
    return Inputs(items, list(folders), groups, sets, tuple(notes))


def check_places(config: BenchmarkConfig) -> None:
    """Refuse places that are not there before anything is written; ConfigError: a folder or file does not exist."""
    places = [("--method", Path(place)) for place in config.methods.values() if not place.startswith("retoucher:")]
    places += [(option, path) for option, path in (("--source", config.source), ("--reference", config.reference)) if path is not None]
    for option, path in places:
        if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".zip"):
            raise ConfigError(f"{option} {path}: no such folder or zip file; give one with pictures, or retoucher:BACKBONE")
    if config.set is not None and not config.set.is_dir():
        raise ConfigError(f"--set {config.set}: no such folder")
    if config.pairs is not None and not config.pairs.is_file():
        raise ConfigError(f"--pairs {config.pairs}: no such file")


def check_readable(config: BenchmarkConfig) -> None:
    """Refuse what one process only can read; ConfigError: an archive among the places: several processes would unpack it at once."""
    for place in (*config.methods.values(), config.source, config.reference):
        if place is not None and str(place).lower().endswith(".zip") and not str(place).startswith("retoucher:"):
            raise ConfigError(f"{place}: several processes read folders only; unpack it and name the folder")


def gather(config: BenchmarkConfig, work: Path, say: Callable[[str], None], shard: Shard | None = None) -> Inputs:
    """The pictures of a run; what is unpacked and retouched goes to `work`. The processes of a sharded run retouch together, and each
    has all pictures in the end."""
    sets = tuple(list_images(config.set)) if config.set else ()
    if not config.method:
        return _embedded(config, work, sets, say, shard)
    source = read_folder(config.source, work / "unpacked" / "source") if config.source else None
    reference = read_folder(config.reference, work / "unpacked" / "reference") if config.reference else None
    folders = {}
    for name, place in config.methods.items():
        if place.startswith("retoucher:"):
            assert source is not None
            photos = dict(sorted(source.pictures.items())[: config.limit])
            folders[name] = _retouched(place.removeprefix("retoucher:"), photos, work / "retouched", say, shard, config.device)
        else:
            folders[name] = read_folder(Path(place), work / "unpacked" / _short(name))
    return match(folders, source, reference, sets, config.limit)


def _retouched(place: str, photos: dict[str, Path], target: Path, say: Callable[[str], None], shard: Shard | None, device: str) -> Folder:
    """Run a retoucher on the photos as `retouch-portrait` does, with its default controls.

    A photo without a usable face has no picture, but a text with the reason. What an interrupted run or another process left is kept: it
    lies under the hash of backbone, adapter, steps, device, controls and photo.
    """
    from policies.retoucher.retouch.command import analyser
    from policies.retoucher.retouch.faces import apply_controls, find_faces
    from policies.retoucher.retouch.options import RetouchConfig

    backbone_name, _, adapter = place.partition("+")
    settings = RetouchConfig.of(source=Path(), target=target, backbone=backbone_name, adapter=adapter or None, device=device)
    digest = Digests()
    weights = settings.lora / ADAPTER if settings.lora else None
    adapter = digest(weights) if weights and weights.is_file() else settings.lora
    controls = (settings.blemishes, settings.tone, settings.texture, settings.strength, settings.moles)
    target = target / _short(f"{backbone_name} {adapter} {settings.num_steps} {device} {controls}")
    target.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Path] = {}
    analyse = None
    for name in list(photos) if shard is None else shard.order(list(photos)):
        photo = photos[name]
        out = target / f"{digest(photo)[:24]}.png"
        if out.with_suffix(".txt").is_file():
            say(f"note: {out.with_suffix('.txt').read_text(encoding='utf-8')}")
            continue
        if not out.is_file():
            if analyse is None:
                say(f"retouching {len(photos)} photos by {place}")
                analyse = analyser(settings)
            try:
                pixels = read_image(photo).pixels
                faces = find_faces(pixels, settings.smallest_face(*pixels.shape[1:]), photo)
                retouched = apply_controls(pixels, analyse(pixels, faces), settings).pixels
            except (FaceError, ImageError) as error:
                say(f"note: {error}")
                write_text(out.with_suffix(".txt"), str(error))
                continue
            write_image(out, retouched)
        pictures[name] = out
    return Folder({name: pictures[name] for name in photos if name in pictures})


def _short(text: str) -> str:
    """A name that is safe as a folder's, whatever the text is."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _embedded(config: BenchmarkConfig, work: Path, sets: tuple[Path, ...], say: Callable[[str], None], shard: Shard | None) -> Inputs:
    """The held-out photos of the demo run: input, base and aligned; without such a run, input and base of fresh synthetic photos."""
    held_out = config.demo / "held_out"
    if held_out.is_dir():
        files = list_images(held_out)
        pictures = {
            kind: {path.stem.removesuffix(f"_{kind}"): path for path in files if path.stem.endswith(f"_{kind}")}
            for kind in (*KINDS, "clean")
        }
        folders = {kind: Folder(pictures[kind]) for kind in KINDS if pictures[kind]}
        if "input" not in folders or len(folders) < 2:
            raise ConfigError(f"--demo {config.demo}: held_out lacks its pictures; run align-retoucher --config demo --overwrite again")
        say(f"the embedded retoucher on the held-out photos of {config.demo}")
        return match(folders, folders["input"], Folder(pictures["clean"]) if pictures["clean"] else None, sets, config.limit)
    say(f"{config.demo} holds no aligned retoucher (make demo trains one): input and base only")
    return _synthetic(work / "embedded", config.limit or EMBEDDED, sets, say, shard, config.device)


def _synthetic(work: Path, count: int, sets: tuple[Path, ...], say: Callable[[str], None], shard: Shard | None, device: str) -> Inputs:
    from preference_data.people.synthetic import make_case

    for kind in ("input", "clean"):
        (work / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count) if shard is None else shard.order(range(count)):
        paths = [work / kind / f"{number:03d}.png" for kind in ("input", "clean")]
        if not all(path.is_file() for path in paths):
            case = make_case("held_out", 20_000_000 + number, size=128)
            for path, pixels in zip(paths, (case.source, case.clean), strict=True):
                write_image(path, pixels)
    photos = Folder({path.stem: path for path in list_images(work / "input")[:count]})
    base = _retouched("tiny", dict(photos.pictures), work / "retouched", say, shard, device)
    clean = Folder({path.stem: path for path in list_images(work / "clean")})
    return match({"input": photos, "base": base}, photos, clean, sets)
