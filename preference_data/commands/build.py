"""The command `make-preferences build`: subjects, candidates, pairs; resumable, with a quarantine."""

import hashlib
import json
import math
import shutil
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from portraitkit.config import config_to_dict, may_change
from portraitkit.errors import ConfigError, RunFolderError, UserError
from portraitkit.files.atomic import clear_unfinished, write_text
from portraitkit.files.jsonl import Rejected, write_lines
from portraitkit.pictures.images import write_image
from portraitkit.runs.locks import WRITING, only_writer
from portraitkit.runs.shards import (
    SHARDS,
    Growing,
    Shard,
    ShardFile,
    clear_shards,
    current_shard,
    merged_rows,
    shard_count,
    wait_for_shards,
)
from portraitkit.runs.terminal import Interruptible, progress_bar
from preference_data.annotations import FOLDER as ANNOTATIONS
from preference_data.commands.options import BuildConfig
from preference_data.generators import (
    CLEAN,
    NEAR,
    TRUTH_OF,
    Candidate,
    Generator,
    GeneratorOptions,
    Subject,
    embedded_rows,
    open_generators,
    open_subject,
    with_nothing_to_do,
    without_paint,
)
from preference_data.hub import BUILT, build_record
from preference_data.pair_set import METADATA, QUARANTINE, holds_pairs, list_photos, write_quarantine
from preference_data.people.photos import PhotoRow, describe_rows, folder_rows
from preference_data.people.synthetic_pairs import verdicts_of
from preference_data.schema import DIMENSIONS, Origin, Pair, row_of
from preference_data.verdict import Verdict, winner

ALONE = Shard(0, 1, launched=True)  # A build that is not divided


def build_pairs(config: BuildConfig) -> int:
    """Build a pair set; returns the exit code: 0, 1 where too many photos were refused, 130 or 143 when interrupted."""
    out, shard = config.output_dir, current_shard(config.shard)
    console = Console(stderr=True, quiet=shard is not None and shard.launched and not shard.merges)
    photos = None if config.photos == "embedded" else Path(config.photos)
    if photos is not None and not photos.is_dir():
        raise ConfigError(f"PHOTOS {photos}: no such folder; give a folder of photos, or embedded")
    if photos is not None and config.anchors == "file":
        bare = next((row["file_name"] for row in list_photos(photos).rows if not row.get("anchor_file_name")), None)
        if bare is not None:
            raise ConfigError(f"--anchors file: {bare} has no anchor_file_name; add it, or leave --anchors out")
    _check_folder(out, config)
    if shard is not None:
        return _build(config, photos, shard, console)
    with only_writer(out):
        _check_folder(out, config)  # another process may have been writing it
        if shard_count(out) > 1 and not config.overwrite:  # jobs of their own made them
            done = merged_rows(out)
            return _finish(*_photos(config, photos, ALONE, console), done, config, console)
        return _build(config, photos, ALONE, console)


def _build(config: BuildConfig, photos: Path | None, shard: Shard, console: Console) -> int:
    """Make a shard's pairs; the process that merges then waits for the others, and writes the set."""
    out = config.output_dir
    names = () if photos is None else tuple(row["file_name"] for row in list_photos(photos).rows)
    several = shard.count > 1 and config.device == "cuda" and torch.cuda.is_available()  # each of a machine's processes has its own GPU
    device = f"cuda:{shard.local % torch.cuda.device_count()}" if several else config.device
    generators = open_generators(config.generators, GeneratorOptions(config.prompt, config.num_steps, device, photos, names))
    if shard is ALONE and shard_count(out) and not config.overwrite:
        console.print(f"{out}: going on with the build that was interrupted", highlight=False)
        clear_unfinished(out)
    with ShardFile(out, shard, _resumable(config), anew=config.overwrite) as own:
        if config.overwrite:  # the table first: killed from here on, it is a build to go on with, never a set without its pictures
            for name in (METADATA, QUARANTINE, BUILT):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / "images", ignore_errors=True)
        try:
            rows, rejected = _photos(config, photos, shard, console)
        except UserError:
            if shard is ALONE and not own.rows:  # other photos may go there
                clear_shards(out)
            raise
        if not own.finished:
            stopped = _make(shard.share(rows), own, generators, config, console)
            if stopped:
                return stopped
            own.finish()
        if not shard.merges:
            console.print(f"{out}: shard {shard} is done; after all shards, the same command without --shard merges", highlight=False)
            return 0
        with Interruptible() as interrupt:
            if not wait_for_shards(out, lambda: interrupt.requested is not None):
                return interrupt.exit_code
    return _finish(rows, rejected, merged_rows(out), config, console)


def _photos(config: BuildConfig, photos: Path | None, shard: Shard, console: Console) -> tuple[list[PhotoRow], list[Rejected]]:
    """All rows, whatever the shard: who is in which split depends on all of them."""
    if photos is None:
        rows, rejected = embedded_rows(config.count, config.split_shares, config.seed), []
    else:
        facts, cache = {"consent": config.consent, "licence": config.licence}, config.output_dir / SHARDS / f"faces-{shard.name}.jsonl"
        with progress_bar(console) as bar:
            rows, rejected = folder_rows(
                photos,
                shares=config.split_shares,
                seed=config.seed,
                cache=Growing(cache, "faces-*.jsonl"),
                facts=facts,
                track=lambda names: bar.track(shard.order(names), description="looking at the photos"),
            )
    console.print(describe_rows(rows), highlight=False, soft_wrap=True)
    return [replace(row, anchor=None) for row in rows] if config.anchors == "painted" else rows, rejected


def _make(rows: list[PhotoRow], own: ShardFile, generators: list[Generator], config: BuildConfig, console: Console) -> int:
    """Make the pairs of those photos that the shard's file does not have; 130 or 143 when interrupted."""
    done = {row["subject"] for row in own.rows}
    with Interruptible() as interrupt, progress_bar(console) as bar:
        task = bar.add_task("building", total=len(rows), completed=sum(row.id in done for row in rows))
        for row in rows:
            if row.id in done:
                continue
            if interrupt.requested:
                console.print(f"stopped after {len(done)} of {len(rows)} photos; give the same command again to go on")
                return interrupt.exit_code
            own.append(_one(row, generators, config))
            done.add(row.id)
            bar.advance(task)
    return 0


def pair_candidates(
    candidates: list[Candidate], label: Candidate | None, *, pairs: int, generator: torch.Generator
) -> list[tuple[Candidate, Candidate]]:
    """Who is compared with whom, and who is a: every group within itself, at most `pairs` or as many as it has members; the others with
    each other and with the label, where it is to be compared, by turns: at most `pairs` of these.
    """
    groups: dict[str | None, list[Candidate]] = {None: []}
    for candidate in candidates:
        groups.setdefault(candidate.group, []).append(candidate)
    free, made = groups.pop(None), []
    for members in groups.values():
        couples, most = list(combinations(members, 2)), max(pairs, len(members))
        few = range(len(couples)) if len(couples) <= most else torch.randperm(len(couples), generator=generator)[:most].tolist()
        made += [couples[index] for index in few]
    among = list(combinations(free, 2))
    among = [among[index] for index in torch.randperm(len(among), generator=generator).tolist()]
    against = [(candidate, label) for candidate in free] if label is not None else []
    turns = [couple for both in zip(among, against, strict=False) for couple in both]
    turns += among[len(against) :] + against[len(among) :]
    made += turns[:pairs]
    return [couple if float(torch.rand(1, generator=generator)) < 0.5 else (couple[1], couple[0]) for couple in made]


def _one(row: PhotoRow, generators: list[Generator], config: BuildConfig) -> dict[str, Any]:
    """The pairs of one photo, their pictures written; or why there are none."""
    try:
        subject, identity = open_subject(row, config.side)
        seed = int.from_bytes(hashlib.sha256(f"{config.seed} {row.id}".encode()).digest()[:4], "big")
        made: list[dict[str, Any]] = []
        clean = [generator for generator in generators if generator.name == CLEAN]
        synthetic = [generator for generator in generators if generator.name in TRUTH_OF and generator not in clean]
        real = [generator for generator in generators if generator.name not in TRUTH_OF]
        groups = (("d", synthetic, subject), ("n", clean, with_nothing_to_do(subject)), ("c", real, without_paint(subject)))
        for tag, group, own in groups:
            if not group:
                continue
            count = config.candidates if tag == "c" else 2 * config.pairs_per_photo
            candidates = [candidate for generator in group for candidate in generator.candidates(own, count, seed)]
            label = None
            if config.against_label and own.label is not None and tag == "c":
                label = Candidate((own.label * 255).round() / 255, Origin("label", is_label=True))
            coin = torch.Generator().manual_seed(seed)
            couples = pair_candidates(candidates, label, pairs=config.pairs_per_photo, generator=coin)
            made += _write(own, couples, tag, row, identity, config.output_dir)
    except UserError as error:
        return {"subject": row.id, "pairs": [], "error": str(error)}
    error = None if made else f"{row.id}: the generators gave fewer than two candidates"
    return {"subject": row.id, "pairs": made, "error": error}


def known_truth(a: Candidate, b: Candidate) -> tuple[dict[str, Verdict] | None, Verdict | None, dict[str, tuple[float, float]] | None]:
    """Verdicts, overall verdict and scores of two candidates, None where they are not known. Of verifiable ones, what lies within `NEAR` is
    a tie, and so is an overall lead that no dimension shows; where one value is not finite, nothing is known.
    """
    if a.truth is not None and b.truth is not None:
        if not all(map(math.isfinite, (*a.truth.values(), *b.truth.values()))):
            return None, None, None
        both = {name: (a.truth[name], b.truth[name]) for name in DIMENSIONS}
        verdicts: dict[str, Verdict] = {name: winner(x, y, NEAR) for name, (x, y) in both.items()}
        overall = winner(a.truth["overall"], b.truth["overall"], NEAR)
        scores = {name: (round(1 + 4 * x, 3), round(1 + 4 * y, 3)) for name, (x, y) in both.items()}
        return verdicts, overall if overall in verdicts.values() else "tie", scores
    if a.scores is None or b.scores is None:
        return None, None, None
    whole = {name: (a.scores[name], b.scores[name]) for name in a.scores}
    return *verdicts_of(whole), {name: (float(x), float(y)) for name, (x, y) in whole.items()}


def _write(
    subject: Subject, couples: list[tuple[Candidate, Candidate]], tag: str, row: PhotoRow, identity: str, out: Path
) -> list[dict[str, Any]]:
    images = out / "images"
    images.mkdir(exist_ok=True)
    names: dict[int, str] = {}

    def stored(pixels: torch.Tensor, what: str) -> str:
        if id(pixels) not in names:
            names[id(pixels)] = f"images/{subject.id}-{what}.png"
            write_image(images / f"{subject.id}-{what}.png", pixels)
        return names[id(pixels)]

    facts: dict[str, Any] = {"identity": identity, "split": row.split, "synthetic": subject.synthetic or tag != "c", **row.facts}
    rows = []
    for index, (a, b) in enumerate(couples):
        files = (stored(subject.case.source, f"{tag}-input"), stored(a.pixels, f"{tag}{index}-a"), stored(b.pixels, f"{tag}{index}-b"))
        anchor = stored(subject.label, f"{tag}-anchor") if subject.label is not None else None
        truth = known_truth(a, b)
        judge = TRUTH_OF.get(a.origin.generator, "degradation") if truth[0] else ""
        more: dict[str, Any] = {**facts, "annotator": judge, "origin_a": a.origin, "origin_b": b.origin, "anchor": anchor}
        rows.append(row_of(Pair(f"{subject.id}-{tag}{index}", *files, *truth, **more)))
    return rows


def _check_folder(out: Path, config: BuildConfig) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--output-dir {out}: is a file; give a folder")
    photos = None if config.photos == "embedded" else Path(config.photos).resolve()
    if photos is not None and (photos == out.resolve() or photos.is_relative_to((out / "images").resolve())):
        raise ConfigError(f"--output-dir {out}: holds PHOTOS {config.photos}; choose another folder")
    if not out.is_dir():
        return
    begun = shard_count(out, None if config.overwrite else _resumable(config)) > 0
    foreign = not begun and any(path.name not in (WRITING, SHARDS) for path in out.iterdir())
    if config.overwrite:
        if foreign and not holds_pairs(out):
            raise ConfigError(f"--output-dir {out}: holds files that are no pair set; choose another folder or empty it")
        if any((out / ANNOTATIONS).glob("*.jsonl")):
            raise ConfigError(f"--output-dir {out}: people or models have judged these pairs ({ANNOTATIONS}/); choose another folder")
        if any(path.stem != ALONE.name for path in (out / SHARDS).glob("*.lock")):
            raise ConfigError(
                f"--output-dir {out}: other processes are making its shards; wait for them, or remove {out / SHARDS} if they are gone"
            )
    elif (out / METADATA).is_file():
        raise ConfigError(f"--output-dir {out}: holds a pair set; add --overwrite or choose another folder")
    elif foreign:
        raise ConfigError(f"--output-dir {out}: holds files that are no pair set; choose another folder or empty it")


def _resumable(config: BuildConfig) -> dict[str, Any]:
    return {key: value for key, value in config_to_dict(config).items() if key not in may_change(BuildConfig)}


def _finish(rows: list[PhotoRow], rejected: list[Rejected], made: list[list[dict[str, Any]]], config: BuildConfig, console: Console) -> int:
    """Write the set of what all shards have made."""
    out, done = config.output_dir, {row["subject"]: row for part in made for row in part}
    lacking = next((place for place, row in enumerate(rows) if row.id not in done), None)
    if lacking is not None:
        lost = Shard(lacking % len(made), len(made))
        raise RunFolderError(
            f"{out}: shard {lost} lacks {rows[lacking].id}: the photos have changed since; remove {out / SHARDS / lost.name}.jsonl and "
            "make that shard again"
        )
    failed = [row for row in rows if done[row.id]["error"] is not None]
    rejected = rejected + [Rejected(row.line, done[row.id]["error"], str(row.file or row.id)) for row in failed]
    rejected.sort(key=lambda row: row.line)
    pairs = [pair for row in rows for pair in done[row.id]["pairs"]]
    write_quarantine(out, rejected)
    if not pairs:
        first = rejected[0].reason if rejected else "no candidates"
        raise ConfigError(f"{config.photos}: no pair could be made; the first reason: {first}")
    write_text(out / BUILT, json.dumps(build_record(config_to_dict(config), config.photos == "embedded"), indent=2) + "\n")
    write_lines(out / METADATA, pairs)
    clear_shards(out)
    judged = sum(pair["verdicts"] is not None for pair in pairs)
    synthetic = sum(pair["synthetic"] for pair in pairs)
    by_split = ", ".join(f"{split} {count}" for split, count in Counter(pair["split"] for pair in pairs).items())
    print(f"{out}: {len(pairs)} pairs ({by_split}), {synthetic} synthetic, {judged} with known truth")
    total = len(rejected) + len(rows) - len(failed)
    if rejected:
        print(f"{len(rejected)} of {total} photos could not be used; see {out / QUARANTINE}", file=sys.stderr)
    if judged < len(pairs):
        console.print(f"{len(pairs) - judged} pairs have no verdict yet: make-preferences annotate {out}", highlight=False)
    return 1 if len(rejected) > config.max_bad_share * total else 0
