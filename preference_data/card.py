"""The data card of a pair set: where its pictures come from, who agreed to what, who judged, who is shown, what made the candidates."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from portraitkit.report.card import Table, counted, write_readme
from portraitkit.runs.folder import versions_of
from preference_data.schema import CHOICES, SPLITS, Pair

BUILT = "build.json"  # What `make-preferences build` leaves beside a set about how it was made
PACKAGES = ("portraitkit", "diffusers", "transformers", "torch")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "cc0-1.0",
    "openrail",
    *(f"cc-{terms}-4.0" for terms in ("by", "by-sa", "by-nc", "by-nc-sa", "by-nc-nd")),
}


def build_record(options: Mapping[str, Any], synthetic: bool) -> dict[str, Any]:
    """What made a set: generators with their options, and the versions of what they run on. No path of the photos."""
    kept = ("generators", "prompt", "num_steps", "seed", "resolution", "candidates", "pairs_per_photo", "against_label")
    return {
        "photos": "embedded" if synthetic else "a folder",
        "options": {name: options[name] for name in kept if name in options},
        "versions": {name: found for name, found in versions_of(PACKAGES).items() if found},
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
    from huggingface_hub import DatasetCardData

    splits = Counter(pair.split for pair in pairs)
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in SPLITS if split in splits]
    licences = {pair.licence for pair in pairs}
    only = licences.pop().lower() if len(licences) == 1 else "other"
    synthetic, people = sum(pair.synthetic for pair in pairs), len({pair.identity for pair in pairs if pair.identity})
    metadata = DatasetCardData(
        configs=[{"config_name": "default", "data_files": files}],
        license=only if only in HUB_LICENCES else "other" if only else "unknown",
        pretty_name="Preference pairs of portrait retouches",
        size_categories=next((name for most, name in SIZES if len(pairs) < most), "n>1M"),
        task_categories=["image-text-to-text", "image-to-image"],
        annotations_creators=["machine-generated"] if all(pair.annotator in ("degradation", "verifiable") for pair in pairs) else ["other"],
        tags=["portraitkit", "preference", *(["synthetic"] if synthetic else [])],
    )
    counts = [
        ("photos come from", counted(pair.source for pair in pairs)),
        ("licence of the photo", counted(pair.licence for pair in pairs)),
        ("consent of the person", counted(pair.consent for pair in pairs)),
        ("judged by", counted((pair.annotator for pair in pairs if pair.overall is not None), nothing="not named") or "nobody"),
        ("not judged", sum(pair.overall is None for pair in pairs)),
    ]
    groups = [(name.replace("_", " "), counted(str(getattr(pair, name) or "") for pair in pairs)) for name in CHOICES]
    known, built = any(getattr(pair, name) for pair in pairs for name in CHOICES), _record_lines(record)
    return write_readme(
        folder,
        metadata,
        Path(__file__).with_name("card.md.j2"),
        pairs=pairs,
        people=people,
        synthetic=synthetic,
        splits=", ".join(f"{split.replace('_', '-')} {count}" for split, count in splits.items()),
        counts=Table("", ("", "pairs"), counts),
        without=sum(not pair.consent for pair in pairs if not pair.synthetic),
        groups=Table("", ("", "pairs"), groups) if known else None,
        generators=_generators(pairs),
        built=Table("", ("built with", ""), built) if built else None,
    )


def _generators(pairs: Sequence[Pair]) -> Table:
    """Each generator and model, how many candidates it made, and how many of them are distinct in seed or faults."""
    counts: Counter[tuple[str, str]] = Counter()
    faults: dict[tuple[str, str], set[str]] = {}
    for origin in (origin for pair in pairs for origin in (pair.origin_a, pair.origin_b)):
        key = origin.generator, _short(origin.model)
        counts[key] += 1
        faults.setdefault(key, set()).update(fault.kind for fault in origin.faults)
    rows = [(name, model or None, count, len(faults[name, model])) for (name, model), count in counts.most_common()]
    return Table("", ("generator", "model", "times in a pair", "kinds of known faults"), rows)


def _short(model: str | None) -> str:
    """A hub id as it is; of a path on somebody's machine its name only."""
    if not model:
        return ""
    return Path(model).name if Path(model).is_absolute() or model.count("/") > 1 else model


def _record_lines(record: Mapping[str, Any]) -> list[tuple[str, object]]:
    options, versions = record.get("options"), record.get("versions")
    options = dict(options) if isinstance(options, Mapping) else {}
    if isinstance(generators := options.get("generators"), list):
        options["generators"] = [_generator(str(name)) for name in generators]
    lines = [("versions", [f"{name} {value}" for name, value in versions.items()])] if isinstance(versions, Mapping) and versions else []
    return [*lines, *((name.replace("_", " "), value) for name, value in options.items())]


def _generator(name: str) -> str:
    """A generator as it was named, without the folders of somebody's machine."""
    kind, colon, where = name.partition(":")
    return f"{kind}:{_short(where)}" if colon and not kind.endswith(".py") else f"{Path(kind).name}{colon}{where}"
