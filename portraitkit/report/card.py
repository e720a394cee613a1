"""Model cards: what a model is, of which base under which licence, learned from what, measured how, and what it is not.

The text is made by `huggingface_hub.ModelCard`, with metadata that the hub reads. Local paths and commands stay out of it: a card may be
published.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portraitkit.files.atomic import write_text

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
FLUX = "https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev/blob/main/LICENSE.md"
QWEN = "https://huggingface.co/Qwen/Qwen2.5-VL-{size}-Instruct/blob/main/LICENSE"
NAMED = {"flux-1-dev-non-commercial-license": FLUX}
"""Licences that the hub files under `other`, and where their text is."""


@dataclass(frozen=True)
class Licence:
    """A licence as the hub's metadata has it.

    Attributes:
        key: one of the hub's identifiers; other where it has none of its own; unknown.
        name: of one that is other.
        link: to its text.
    """

    key: str = "unknown"
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        title = self.name or self.key
        return f"[{title}]({self.link})" if self.link else title


KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Licence("other", "qwen-research", QWEN.format(size="3B")),
    "Qwen/Qwen2.5-VL-7B-Instruct": Licence("apache-2.0"),
    "Qwen/Qwen2.5-VL-32B-Instruct": Licence("apache-2.0"),
    "Qwen/Qwen2.5-VL-72B-Instruct": Licence("other", "qwen", QWEN.format(size="72B")),
}


@dataclass(frozen=True)
class Base:
    """The model that was trained on.

    Attributes:
        words: how it is called in the text.
        hub_id: its repository, or None.
        licence: carried over to what was made of it.
    """

    words: str
    hub_id: str | None
    licence: Licence


@dataclass(frozen=True)
class Table:
    """A table of a card: heading, column names, rows, and a note below."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """As text; what stands in a cell cannot break the table."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


@dataclass(frozen=True)
class Result:
    """One held-out figure for the hub's metadata."""

    name: str
    value: float


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        title: heading.
        what: what the model is for, a paragraph.
        headline: the result, in sentences that the intervals allow.
        base: that was trained on.
        data: provenance of the data, a sentence each; the first says whether they are synthetic.
        tables: held-out figures, and by group where groups are known.
        limits: what the model is not, a sentence each.
        settings: (name, value) of the training.
        usage: Python that loads it; empty for none.
        data_name: of the held-out data, for the metadata.
        results: main figures for the metadata.
        task: as the hub calls what the model does: image-text-to-text, image-to-image.
        library: that loads it.
        tags: further ones.
        adapter: a LoRA, not a whole model.
    """

    title: str
    what: str
    headline: str
    base: Base
    data: tuple[str, ...]
    tables: tuple[Table, ...]
    limits: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    usage: str
    data_name: str
    results: tuple[Result, ...]
    task: str
    library: str
    tags: tuple[str, ...] = ()
    adapter: bool = False


def write_card(folder: Path, card: Card) -> Path:
    """Write `README.md` beside a model's weights, in place of what a library wrote there; returns its path."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type=card.task,
            dataset_type="portraitkit",
            dataset_name=card.data_name,
            metric_type=result.name.replace(" ", "_"),
            metric_name=result.name,
            metric_value=round(result.value, 6),
        )
        for result in card.results
        if math.isfinite(result.value)
    ]
    licence = card.base.licence
    related: dict[str, Any] = {"base_model_relation": "adapter" if card.adapter else "finetune"} if card.base.hub_id else {}
    data = ModelCardData(
        license=licence.key,
        license_name=licence.name,
        license_link=licence.link,
        base_model=card.base.hub_id,
        library_name=card.library,
        pipeline_tag=card.task,
        tags=["portraitkit", *card.tags],
        model_name=card.title,
        eval_results=results or None,
        **related,
    )
    words: dict[str, Any] = {"card": card, "tables": [(table.heading, table.markdown(), table.note) for table in card.tables]}
    made = ModelCard.from_template(data, template_path=str(TEMPLATE), **words)
    path = folder / "README.md"
    write_text(path, str(made).rstrip() + "\n")
    return path


def base_of(source: str, *, embedded: str) -> Base:
    """A base and its licence, without the network: from the card in its folder, from the hub's cache, or from our own list.

    Args:
        source: embedded, a folder, or a hub id.
        embedded: how the embedded model is called.
    """
    if source == "embedded":
        return Base(embedded, None, Licence("apache-2.0"))
    folder = Path(source)
    if folder.is_dir():
        found = _metadata(folder / "README.md")
        hub_id = found.get("base_model")
        hub_id = hub_id[0] if isinstance(hub_id, list) and hub_id else hub_id
        words = "/".join(folder.resolve().parts[-2:])
        origin = f", itself made from {hub_id}" if isinstance(hub_id, str) else ""
        return Base(f"the local model `{words}`{origin}", hub_id if isinstance(hub_id, str) else None, _licence_in(found))
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "README.md")
    licence = _licence_in(_metadata(Path(cached))) if isinstance(cached, str) else Licence()
    return Base(source, source, KNOWN.get(source, licence) if licence.key == "unknown" else licence)


def named_licence(name: str) -> Licence:
    """A licence by the name that a backbone gives."""
    return Licence("other", name, NAMED[name]) if name in NAMED else Licence(name)


def cell(value: object) -> str:
    """Text for a cell of a table; the items of a list with commas between; a dash for None."""
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def counted(values: Iterable[str], *, nothing: str = "not given", most: int = 8) -> str:
    """`mit (12), not given (3)`: how often each value occurs, the most frequent first."""
    from collections import Counter

    counts = Counter(cell(value) or nothing for value in values).most_common()
    shown = ", ".join(f"{name} ({count})" for name, count in counts[:most])
    return shown + (f", {len(counts) - most} others" if counts[most:] else "")


def group_tables(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], what: str, *, smallest: int = 20) -> list[Table]:
    """One table for each column by which people are told apart.

    Args:
        groups: column -> value -> `before`, `after`, `ci95` of after, `n`; before is None where it was not measured.
        what: is measured.
        smallest: groups of fewer rows are marked.
    """
    tables = []
    for column, values in groups.items():
        rows = [
            (
                f"{value}{' *' if row['n'] < smallest else ''}",
                str(row["n"]),
                figure(row.get("before")),
                figure(row["after"]),
                interval(row["ci95"]),
            )
            for value, row in values.items()
        ]
        note = f"\\* fewer than {smallest} rows: an interval of so few says little." if any("*" in row[0] for row in rows) else ""
        heading = f"{what} by {column.replace('_', ' ')}"
        tables.append(Table(heading, (column.replace("_", " "), "n", "before", "after", "95 % interval"), tuple(rows), note))
    return tables


def figure(value: float | None) -> str:
    """A figure for a table."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def interval(ends: Sequence[float | None] | None) -> str:
    """Two ends for a table."""
    return "–" if ends is None else f"{figure(ends[0])} to {figure(ends[1])}"


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a card; nothing where there is no card, or none that can be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, YAMLError):
        return {}


def _licence_in(metadata: Mapping[str, Any]) -> Licence:
    key, name, link = (metadata.get(part) for part in ("license", "license_name", "license_link"))
    if not isinstance(key, str):
        return Licence()
    return Licence(key, name if isinstance(name, str) else None, link if isinstance(link, str) else None)
