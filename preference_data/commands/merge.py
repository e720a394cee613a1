"""The commands `make-preferences merge`, many annotators' files into one set of verdicts, and `make-preferences export`."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from portraitkit.errors import DataError
from portraitkit.report.page import plural
from portraitkit.runs.locks import only_writer
from preference_data import hub
from preference_data.annotations import Judgement, append_judgement, both_orders, conflicts, consensus, print_agreement, read_judgements
from preference_data.commands.options import ExportConfig, MergeConfig
from preference_data.pair_set import metadata_of, read_pairs, write_pairs
from preference_data.schema import Pair


def merge(config: MergeConfig) -> int:
    """Merge and print; returns 0, or 1 where rows could not be read or pairs are still in conflict."""
    metadata_of(config.data, "give the folder of a pair set")
    if config.dry_run:
        return _merge(config)
    with only_writer(config.data):
        return _merge(config)


def _merge(config: MergeConfig) -> int:
    pairs = read_pairs(config.data)
    for path in config.files:
        if not path.is_file():
            raise DataError(f"--files {path}: no such file; give what the page exports or annotations/NAME.jsonl of a copy")
    before, _ = read_judgements(config.data)
    judgements, rejected = read_judgements(config.data, config.files)
    for path, row in rejected:
        print(f"{path} line {row.line}: {row.reason}", file=sys.stderr)
    ids = {pair.id for pair in pairs}
    strangers = sorted({row.pair for row in judgements} - ids)
    judgements = [row for row in judgements if row.pair in ids]
    if strangers:
        print(f"{len(strangers)} judged pairs are not in {config.data}, {strangers[0]!r} for one; left out", file=sys.stderr)
    if not judgements:
        raise DataError(f"{config.data}: nobody has judged a pair of it yet; use make-preferences annotate")
    merged, counts = merge_pairs(pairs, judgements, relabel=config.relabel)
    print_agreement(judgements, pairs)
    unjudged = counts["open"] - counts["conflict"]
    disputed = len(conflicts(judgements))
    print(
        f"{config.data}: {plural(counts['new'], 'pair')} given verdicts, {counts['kept']} kept theirs, {disputed} in conflict "
        f"({counts['conflict']} of them are left open), {unjudged} unjudged"
    )
    if counts["unused"]:
        print(f"{counts['unused']} of the judged pairs had a verdict already and keep it: --relabel gives them the annotators'")
    if not config.dry_run:
        for row in judgements:
            if row not in before:
                append_judgement(config.data, row)
        write_pairs(config.data, merged)
    return 1 if rejected or counts["conflict"] else 0


def merge_pairs(pairs: list[Pair], judgements: list[Judgement], *, relabel: bool) -> tuple[list[Pair], dict[str, int]]:
    """The pairs with their annotators' consensus, and how many are new, kept, kept in spite of judgements, open, and open because of a
    conflict.

    A pair in conflict is open, whatever it said before, if verdicts are to be replaced.
    """
    joined = both_orders(judgements)
    judged = {row.pair for row in joined}
    counts: Counter[str] = Counter(dict.fromkeys(("new", "kept", "unused", "open", "conflict"), 0))
    merged = []
    for pair in pairs:
        if pair.id not in judged or (pair.verdicts is not None and not relabel):
            counts.update(["open" if pair.verdicts is None else "kept", *(["unused"] if pair.id in judged else [])])
            merged.append(pair)
            continue
        agreed = consensus(pair, joined)
        counts.update(["open", "conflict"] if agreed is None else ["new"])
        merged.append(agreed or replace(pair, verdicts=None, overall=None, scores=None, reasoning="", annotator=""))
    return merged, counts


def export(config: ExportConfig) -> int:
    """A pair set as parquet, or back; returns 0."""
    if config.to_folder:
        print(f"{config.output_dir}: {len(hub.load_parquet(config.source, config.output_dir))} pairs")
    else:
        data = hub.save_parquet(Path(config.source), config.output_dir)
        print(f"{config.output_dir}: {sum(len(data[split]) for split in data)} pairs as parquet; datasets.load_dataset reads the folder")
    return 0
