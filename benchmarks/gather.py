"""From the options to the pictures: folders, archives, data sets, retouchers that are run, and the embedded retoucher's own pictures."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.config import BenchmarkConfig
from benchmarks.inputs import Folder, Inputs, match, read_folder
from benchmarks.weight_files import Digests
from portraitkit.errors import ConfigError, FaceError, ImageError
from portraitkit.files.atomic import write_text
from portraitkit.pictures.images import list_images, read_image, write_image
from portraitkit.runs.shards import Shard

ADAPTER = "pytorch_lora_weights.safetensors"
EMBEDDED = 24
KINDS = ("input", "base", "aligned")


def check_places(config: BenchmarkConfig) -> None:
    """Refuse places that are not there before anything is written.

    Raises:
        ConfigError: a folder or file does not exist.
    """
    places = [("--method", Path(place)) for _, place in config.methods() if not place.startswith("retoucher:")]
    places += [(option, path) for option, path in (("--source", config.source), ("--reference", config.reference)) if path is not None]
    for option, path in places:
        if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".zip"):
            raise ConfigError(f"{option} {path}: no such folder or zip file; give one with pictures, or retoucher:BACKBONE")
    if config.set is not None and not config.set.is_dir():
        raise ConfigError(f"--set {config.set}: no such folder")
    if config.pairs is not None and not config.pairs.is_file():
        raise ConfigError(f"--pairs {config.pairs}: no such file")


def gather(config: BenchmarkConfig, work: Path, say: Callable[[str], None], shard: Shard | None = None) -> Inputs:
    """The pictures of a run.

    Args:
        config: of the run.
        work: folder for what is unpacked and retouched.
        say: prints a line.
        shard: of this process; the processes retouch together, and each has all pictures in the end.

    Raises:
        UserError: see `benchmarks.inputs` and `policies.retoucher.retouch.faces`.
    """
    sets = tuple(list_images(config.set)) if config.set else ()
    if not config.method:
        return _embedded(config, work, sets, say, shard)
    source = read_folder(config.source, work / "unpacked" / "source") if config.source else None
    reference = read_folder(config.reference, work / "unpacked" / "reference") if config.reference else None
    folders = {}
    for name, place in config.methods():
        if place.startswith("retoucher:"):
            assert source is not None
            photos = dict(sorted(source.pictures.items())[: config.limit])
            folders[name] = _retouched(place.removeprefix("retoucher:"), photos, work / "retouched", say, shard)
        else:
            folders[name] = read_folder(Path(place), work / "unpacked" / _short(name))
    return match(folders, source, reference, sets, config.limit)


def _retouched(place: str, photos: dict[str, Path], target: Path, say: Callable[[str], None], shard: Shard | None) -> Folder:
    """Run a retoucher on the photos. A photo without a usable face has no picture, but a text with the reason.

    What an interrupted run or another process left is kept: it lies under the hash of backbone, adapter and photo.
    """
    from policies.retoucher.retouch.faces import open_backbone, retouch_picture
    from policies.retoucher.retouch.retouch_config import RetouchConfig

    backbone_name, _, adapter = place.partition("+")
    digest = Digests()
    weights = Path(adapter) / ADAPTER
    target = target / _short(f"{backbone_name} {digest(weights) if adapter and weights.is_file() else adapter}")
    target.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Path] = {}
    backbone, settings = None, None
    for name in list(photos) if shard is None else shard.order(list(photos)):
        photo = photos[name]
        out = target / f"{digest(photo)[:24]}.png"
        if out.with_suffix(".txt").is_file():
            say(f"note: {out.with_suffix('.txt').read_text(encoding='utf-8')}")
            continue
        if not out.is_file():
            if settings is None:
                settings = RetouchConfig(photo, out, backbone=backbone_name, adapter=adapter or None)
                backbone = open_backbone(settings)
                say(f"retouching {len(photos)} photos by {place}")
            assert backbone is not None
            try:
                retouched = retouch_picture(read_image(photo).pixels, backbone, settings, photo).pixels
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
        found = {kind: _of_kind(held_out, kind) for kind in (*KINDS, "clean")}
        folders = {kind: Folder(found[kind]) for kind in KINDS if found[kind]}
        if "input" not in folders or len(folders) < 2:
            raise ConfigError(f"--demo {config.demo}: held_out lacks its pictures; run align-retoucher --config demo --overwrite again")
        say(f"the embedded retoucher on the held-out photos of {config.demo}")
        return match(folders, folders["input"], Folder(found["clean"]) if found["clean"] else None, sets, config.limit)
    say(f"{config.demo} holds no aligned retoucher (make demo trains one): input and base only")
    return _synthetic(work / "embedded", config.limit or EMBEDDED, sets, say, shard)


def _of_kind(folder: Path, kind: str) -> dict[str, Path]:
    return {path.stem.removesuffix(f"_{kind}"): path for path in list_images(folder) if path.stem.endswith(f"_{kind}")}


def _synthetic(work: Path, count: int, sets: tuple[Path, ...], say: Callable[[str], None], shard: Shard | None) -> Inputs:
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
    base = _retouched("tiny", dict(photos.pictures), work / "retouched", say, shard)
    clean = Folder({path.stem: path for path in list_images(work / "clean")})
    return match({"input": photos, "base": base}, photos, clean, sets)
