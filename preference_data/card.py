"""The data card of a pair set: where its pictures come from, who agreed to what, who judged, who is shown, what made the candidates."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from portraitkit.files.atomic import write_text
from portraitkit.report.card import Table, cell, counted
from preference_data.schema import CHOICES, SPLITS, Origin, Pair

TEMPLATE = Path(__file__).parents[1] / "portraitkit" / "report" / "templates" / "data_card.md.j2"
BUILT = "build.json"
"""What `make-preferences build` leaves beside a set about how it was made."""
PACKAGES = ("portraitkit", "diffusers", "transformers", "torch")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
HUB_LICENCES = (
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "openrail",
)


def build_record(options: Mapping[str, Any], synthetic: bool) -> dict[str, Any]:
    """What made a set: generators with their options, and the versions of what they run on. No path of the photos."""
    kept = ("generators", "prompt", "num_steps", "seed", "resolution", "candidates", "pairs_per_photo", "against_label")
    return {
        "photos": "embedded" if synthetic else "a folder",
        "options": {name: options[name] for name in kept if name in options},
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def built_by(folder: Path) -> dict[str, Any]:
    """What `build` recorded in a pair set's folder; nothing where it did not, or where it cannot be read."""
    try:
        found = json.loads((folder / BUILT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_data_card(folder: Path, pairs: Sequence[Pair], record: Mapping[str, Any]) -> Path:
    """Write `README.md` of a parquet data set of at least one pair; `record` is that of `built_by`. Returns its path."""
    from huggingface_hub import DatasetCard, DatasetCardData

    files = [{"split": split, "path": f"data/{split}.parquet"} for split in SPLITS if any(pair.split == split for pair in pairs)]
    licences = {pair.licence for pair in pairs}
    only = next(iter(licences)) if len(licences) == 1 else ""
    by_code = sum(pair.annotator == "degradation" for pair in pairs)
    data = DatasetCardData(
        configs=[{"config_name": "default", "data_files": files}],
        license=only.lower() if only.lower() in HUB_LICENCES else "other" if any(licences) else "unknown",
        pretty_name="Preference pairs of portrait retouches",
        size_categories=next((name for most, name in SIZES if len(pairs) < most), "n>1M"),
        task_categories=["image-text-to-text", "image-to-image"],
        annotations_creators=["machine-generated"] if by_code == len(pairs) else ["other"],
        tags=["portraitkit", "preference", *(["synthetic"] if any(pair.synthetic for pair in pairs) else [])],
    )
    synthetic = sum(pair.synthetic for pair in pairs)
    words: dict[str, Any] = {
        "pairs": len(pairs),
        "synthetic": synthetic,
        "whole": synthetic == len(pairs),
        "people": len({pair.identity for pair in pairs if pair.identity}),
        "splits": ", ".join(f"{split.replace('_', '-')} {count}" for split, count in Counter(pair.split for pair in pairs).items()),
        "counts": [
            ("photos come from", counted(pair.source for pair in pairs)),
            ("licence of the photo", counted(pair.licence for pair in pairs)),
            ("consent of the person", counted(pair.consent for pair in pairs)),
            ("judged by", counted((pair.annotator for pair in pairs if pair.overall is not None), nothing="not named") or "nobody"),
            ("not judged", str(sum(pair.overall is None for pair in pairs))),
        ],
        "without": sum(not pair.consent for pair in pairs if not pair.synthetic),
        "groups": [(name.replace("_", " "), counted(str(getattr(pair, name) or "") for pair in pairs)) for name in CHOICES],
        "known": any(getattr(pair, name) for pair in pairs for name in CHOICES),
        "generators": _generators(pairs).markdown(),
        "record": _record_lines(record),
    }
    made = DatasetCard.from_template(data, template_path=str(TEMPLATE), **words)
    path = folder / "README.md"
    write_text(path, str(made).rstrip() + "\n")
    return path


def _generators(pairs: Sequence[Pair]) -> Table:
    """Each generator and model, how many candidates it made, and how many of them are distinct in seed or faults."""
    origins: list[Origin] = [origin for pair in pairs for origin in (pair.origin_a, pair.origin_b)]
    counts = Counter((origin.generator, _short(origin.model)) for origin in origins)
    faults = {
        key: len({fault.kind for origin in origins if (origin.generator, _short(origin.model)) == key for fault in origin.faults})
        for key in counts
    }
    rows = tuple((key[0], key[1] or "–", str(count), str(faults[key])) for key, count in counts.most_common())
    return Table("", ("generator", "model", "times in a pair", "kinds of known faults"), rows)


def _short(model: str | None) -> str:
    """A hub id as it is; of a path on somebody's machine its name only."""
    if not model:
        return ""
    return Path(model).name if Path(model).is_absolute() or model.count("/") > 1 else model


def _record_lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    options, versions = record.get("options"), record.get("versions")
    lines = []
    if isinstance(versions, Mapping) and versions:
        lines.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    for name, value in (options if isinstance(options, Mapping) else {}).items():
        shown = (
            ", ".join(str(item) if name != "generators" else _generator(str(item)) for item in value) if isinstance(value, list) else value
        )
        lines.append((name.replace("_", " "), cell(shown)))
    return lines


def _generator(name: str) -> str:
    """A generator as it was named, without the folders of somebody's machine."""
    kind, colon, where = name.partition(":")
    return f"{kind}:{_short(where)}" if colon and not kind.endswith(".py") else f"{Path(kind).name}{colon}{where}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
