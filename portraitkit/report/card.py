"""Cards: what a model or a data set is, made of what under which licence, measured how, and what it is not.

One writer for all of them: metadata that the hub reads, then Markdown. Local paths and commands stay out: a card may be published.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.files.atomic import write_text
from portraitkit.report.page import TEMPLATES, interval, number, page_environment
from portraitkit.stats import bootstrap_interval, person_interval

if TYPE_CHECKING:
    from huggingface_hub import CardData

FLUX = "https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev/blob/main/LICENSE.md"
QWEN = "https://huggingface.co/Qwen/Qwen2.5-VL-{size}-Instruct/blob/main/LICENSE"
FLUX_2 = "https://huggingface.co/black-forest-labs/FLUX.2-klein-base-9B/blob/main/LICENSE.md"
NAMED = {
    "flux-1-dev-non-commercial-license": FLUX,
    "flux-non-commercial-license": FLUX_2,
}  # Licences that the hub files under `other`, and where their text is
GROUPS = ("age_band", "age", "gender", "sex", "skin_tone", "race", "ethnicity")  # Columns, or keys of meta_info, that tell people apart
MOST_GROUPS = 12
FEW = 20  # Groups of fewer rows are marked
Groups = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""column -> value -> `before` (None or absent where it was not measured), `after`, `ci95` of after, `n`."""


@dataclass(frozen=True)
class Licence:
    """A licence as the hub's metadata has it: one of its identifiers; for one that is `other`, its name and a link to its text."""

    key: str = "unknown"
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        title = self.name or self.key
        return f"[{title}]({self.link})" if self.link else title


KNOWN = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Licence("other", "qwen-research", QWEN.format(size="3B")),
    "Qwen/Qwen2.5-VL-7B-Instruct": Licence("apache-2.0"),
    "Qwen/Qwen3-VL-8B-Instruct": Licence("apache-2.0"),
    "Qwen/Qwen3.5-9B": Licence("apache-2.0"),
    "Qwen/Qwen2.5-VL-32B-Instruct": Licence("apache-2.0"),
    "Qwen/Qwen2.5-VL-72B-Instruct": Licence("other", "qwen", QWEN.format(size="72B")),
}


@dataclass(frozen=True)
class Base:
    """The model that was trained on: in words, its repository on the hub or None, and the licence, which holds for what was made of it."""

    words: str
    hub_id: str | None
    licence: Licence


EMBEDDED = Base("the embedded tiny Qwen2.5-VL of portraitkit (2.9 M parameters, trained on synthetic rows)", None, Licence("apache-2.0"))


@dataclass(frozen=True)
class Table:
    """A table of a card: heading, column names, rows, and a note below."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def __str__(self) -> str:
        """As Markdown; what stands in a cell cannot break the table."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
        return "\n\n".join(part for part in (self.heading and f"### {self.heading}", table, self.note) if part)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model's card says; `what`, `limits` and `usage` may be blocks of a template of its own."""

    title: str  # heading
    what: str = ""  # what the model is for, a paragraph
    headline: str  # the result, in sentences that the intervals allow
    base: Base  # that was trained on
    data: Sequence[str]  # provenance of the data, a sentence each
    synthetic: bool  # the data were made by code
    held_out: str  # what was measured on: rows, pairs, photos
    tables: Sequence[Table]  # held-out figures
    limits: Sequence[str] = ()  # what the model is not, a sentence each
    settings: Mapping[str, object]  # name -> value of the training
    versions: Mapping[str, str | None]  # name -> version of what it ran on, or None
    usage: str = ""  # Python that loads it; empty for none
    results: Mapping[str, float]  # name -> main figures for the metadata
    task: str  # as the hub calls what the model does: image-text-to-text, image-to-image
    library: str  # that loads it
    tags: Sequence[str] = ()  # further ones
    adapter: bool = False  # a LoRA, not a whole model
    measured: str = ""  # what `groups` has, as the headings of their tables begin
    groups: Groups = field(default_factory=dict)  # the main figure by group of people; empty where nobody knows who is shown


def write_card(folder: Path, card: Card, template: Path = TEMPLATES / "model_card.md.j2", **context: object) -> Path:
    """Write `README.md` beside a model's weights, in place of what a library wrote there; returns its path. A template that extends
    `model_card.md.j2` has the context, too."""
    from huggingface_hub import EvalResult, ModelCardData

    licence = card.base.licence
    kind = "synthetic" if card.synthetic else "own"
    results = [
        EvalResult(
            task_type=card.task,
            dataset_type="portraitkit",
            dataset_name=f"{kind} held-out {card.held_out}",
            metric_type=name.replace(" ", "_"),
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in card.results.items()
        if math.isfinite(value)
    ]
    related: dict[str, Any] = {"base_model_relation": "adapter" if card.adapter else "finetune"} if card.base.hub_id else {}
    metadata = ModelCardData(
        license=licence.key,
        license_name=licence.name,
        license_link=licence.link,
        base_model=card.base.hub_id,
        library_name=card.library,
        pipeline_tag=card.task,
        tags=["portraitkit", *card.tags, *(["synthetic-data"] if card.synthetic else [])],
        model_name=card.title,
        eval_results=results or None,
        **related,
    )
    settings = [(name.replace("_", " "), value) for name, value in card.settings.items()]
    settings += [(name, version) for name, version in card.versions.items() if version]
    tables, table = [*card.tables, *group_tables(card.groups, card.measured)], Table("", ("setting", "value"), settings)
    return write_readme(folder, metadata, template, card=card, tables=tables, settings=table, **context)


def write_readme(folder: Path, metadata: "CardData", template: Path, **context: object) -> Path:
    """Write a card of a model or a data set as `README.md` in its folder, the `metadata` for the hub above the text; returns its path."""
    text = page_environment(template.parent, autoescape=False).get_template(template.name).render(context)
    path = folder / "README.md"
    write_text(path, f"---\n{metadata.to_yaml()}\n---\n\n{text.rstrip()}\n")
    return path


def base_of(source: str, licence: Licence | None = None) -> Base:
    """A base and its licence, without the network: from the card in its folder, from the hub's cache, or from our own list. `source` is
    embedded, a name of ours, a hub id, or a folder, which may be gone since."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if source == "embedded":
        return EMBEDDED
    if source.startswith("portraitkit/"):
        return Base(f"`{source}`", None, licence or Licence())
    folder = Path(source)
    words = f"the local model `{'/'.join(folder.resolve().parts[-2:])}`"
    if folder.is_dir():
        found = _metadata(folder / "README.md")
        hub_id = found.get("base_model")
        hub_id = hub_id[0] if isinstance(hub_id, list) and hub_id else hub_id
        hub_id = hub_id if isinstance(hub_id, str) else None
        return Base(words + (f", itself made from {hub_id}" if hub_id else ""), hub_id, licence or _licence_in(found))
    try:
        cached = [try_to_load_from_cache(source, name) for name in ("README.md", "config.json", "model_index.json")]
        gone = source not in KNOWN and folder.parent.is_dir() and not any(isinstance(path, str) for path in cached)
    except HFValidationError:  # no hub id
        cached, gone = [None], True
    if gone:
        return Base(f"{words}, whose folder is gone", None, licence or Licence())
    found = _licence_in(_metadata(Path(cached[0]))) if isinstance(cached[0], str) else Licence()
    return Base(source, source, licence or (KNOWN.get(source, found) if found.key == "unknown" else found))


def named_licence(name: str) -> Licence:
    """A licence by the name that a backbone gives."""
    return Licence("other", name, NAMED[name]) if name in NAMED else Licence(name)


def cell(value: object) -> str:
    """Text for a cell of a table, once or twice put through; the items of a list with commas between; a dash for None."""
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split())).replace("<", "&lt;")


def counted(values: Iterable[str], *, nothing: str = "not given", most: int = 8) -> str:
    """`mit (12), not given (3)`: how often each value occurs, the most frequent first."""
    counts = Counter(cell(value) or nothing for value in values).most_common()
    shown = ", ".join(f"{name} ({count})" for name, count in counts[:most])
    return shown + (f", {len(counts) - most} others" if counts[most:] else "")


def value_of(row: Mapping[str, Any], name: str) -> str:
    """What a row says in a column, or in its `meta_info`; empty for nothing."""
    meta = row.get("meta_info")
    value = row.get(name, meta.get(name) if isinstance(meta, Mapping) else None)
    return str(value) if isinstance(value, str | int | float) else ""


def by_group(
    rows: Sequence[Mapping[str, Any]], before: Float[Tensor, " n"], after: Float[Tensor, " n"], people: Sequence[str] | None = None
) -> dict[str, Any]:
    """Means before and after by each column that tells people apart and is there, as `Groups`; NaN is left out. Intervals are over
    `people`, who are in the rows, or without them over rows."""
    found: dict[str, Any] = {}
    for column in GROUPS:
        values = [value_of(row, column) for row in rows]
        names = sorted(set(values) - {""})
        for name in names if len(names) <= MOST_GROUPS else ():
            some = torch.tensor([value == name for value in values])
            who = None if people is None else [person for person, value in zip(people, values, strict=True) if value == name]
            ends = bootstrap_interval(after[some]) if who is None else person_interval(after[some], who)
            means = {"before": float(before[some].nanmean()), "after": float(after[some].nanmean()), "n": int(some.sum())}
            found.setdefault(column, {})[name] = {**means, "ci95": ends}
    return found


def group_tables(groups: Groups, what: str) -> list[Table]:
    """One table for each column by which people are told apart; `what` is measured."""
    tables = []
    for column, values in groups.items():
        name = column.replace("_", " ")
        rows = [
            (f"{value}{' *' if row['n'] < FEW else ''}", row["n"], number(row.get("before")), number(row["after"]), interval(row["ci95"]))
            for value, row in values.items()
        ]
        note = f"\\* fewer than {FEW} rows: an interval of so few says little." if any("*" in row[0] for row in rows) else ""
        tables.append(Table(f"{what} by {name}", (name, "n", "before", "after", "95 % interval"), rows, note))
    return tables


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
