"""The command `make-preferences lint`: everything wrong with a set of pairs or photos, as a table and as JSON.

The checks are one function each: rows and pictures in, findings out.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from scipy.fft import dctn
from torch import Tensor

from portraitkit.errors import DataError, FaceError, ImageError
from portraitkit.files.atomic import write_text
from portraitkit.files.jsonl import read_json_lines
from portraitkit.pictures.images import luminance, read_image, resize, to_uint8
from portraitkit.report.page import plural
from portraitkit.runs.terminal import counting
from preference_data.commands.options import LintConfig
from preference_data.pair_set import METADATA, list_photos, metadata_of, read_photo_row, scan_pairs
from preference_data.people.photos import find_face
from preference_data.people.synthetic_pairs import verdicts_of
from preference_data.schema import Pair, contradictions

SHOWN = 3  # Findings of a kind in the table
SMALL_SIDE = 32
LOW_FREQUENCIES = 8
EMBEDDED = "synthetic-"  # How the names of the embedded people begin
KINDS = {
    "bad_row": "a row breaks the schema",
    "bad_image": "a picture cannot be read, or is much smaller than its photo",
    "duplicate_across_splits": "the same photo is in two splits",
    "near_duplicate_across_splits": "photos in two splits look the same",
    "person_across_splits": "one person is in two splits",
    "duplicate_row": "the same photo and candidates are in two rows",
    "same_candidates": "both candidates are the same picture, but one wins",
    "missing_anchor": "a photo has no anchor",
    "no_face": "a photo, anchor or candidate shows no usable face",
    "anchor_of_another_person": "an anchor shows another person than its photo",
    "candidate_of_another_person": "a candidate without known degradations shows another person than its photo",
    "verdict_inconsistent": "a judgement speaks against itself or against the known degradations",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # a key of `KINDS`
    lines: tuple[int, ...]  # lines of metadata.jsonl
    message: str  # what and where, in words


@dataclass(frozen=True)
class Entry:
    """A row of either kind of set, as the checks see it."""

    line: int  # of metadata.jsonl
    photo: str  # file of the photo
    anchor: str | None  # file of its anchor, where it has one
    others: tuple[str, ...]  # files of the candidates
    split: str  # of the row; empty where it has none, since commands then assign it by person
    identity: str  # who it is, where the row says
    pair: Pair | None = None  # the pair, where it is one

    @property
    def files(self) -> tuple[str, ...]:
        """All that it names."""
        return tuple(file for file in (self.photo, self.anchor, *self.others) if file is not None)

    @property
    def retouches(self) -> tuple[str, ...]:
        """Files of the candidates that must show the person in the photo. Known degradations may not: one of them is of identity; nor
        are the embedded people asked about, see `check_people`."""
        if self.pair is None or self.identity.startswith(EMBEDDED):
            return ()
        both = ((self.pair.a, self.pair.origin_a), (self.pair.b, self.pair.origin_b))
        return tuple(file for file, origin in both if not origin.faults)


@dataclass
class Pictures:
    """What is known of the files of a set after one look at each."""

    digest: dict[str, str] = field(default_factory=dict)  # file -> sha256 of its decoded pixels
    size: dict[str, tuple[int, int]] = field(default_factory=dict)  # file -> height and width
    small: dict[str, np.ndarray] = field(default_factory=dict)  # photo -> small grey copy
    embedding: dict[str, Tensor] = field(default_factory=dict)  # photo, anchor or retouch -> identity embedding


def lint_data(config: LintConfig) -> int:
    """Check and print; returns 0 without findings, 1 with some."""
    console = Console(stderr=True)
    entries, findings = read_entries(config.data)
    if not entries and not findings:
        raise DataError(f"{config.data / METADATA}: holds no row")
    with counting(console, "looking", len({file for entry in entries for file in entry.files})) as advance:
        pictures, unusable = look(config.data, entries, identity=config.identity, advance=advance)
    findings += unusable + check_sizes(entries, pictures)
    findings += check_duplicates(entries, pictures, max_bits=config.max_bits, min_correlation=config.min_correlation)
    findings += check_people(entries, pictures, max_distance=config.max_distance)
    findings += check_anchors(entries, pictures, need=config.need_anchors, max_distance=config.max_distance)
    findings += check_verdicts(entries)
    findings.sort(key=lambda finding: (list(KINDS).index(finding.kind), finding.lines))
    report = {"rows": len(entries), "findings": [vars(finding) for finding in findings], "counts": Counter(f.kind for f in findings)}
    if str(config.json) == "-":
        print(json.dumps(report))
        return 1 if findings else 0
    if config.json is not None:
        try:
            write_text(config.json, json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise DataError(f"--json {config.json}: could not be written ({error.strerror}); give another file") from error
    _show(findings, len(entries), config.data)
    return 1 if findings else 0


def read_entries(folder: Path) -> tuple[list[Entry], list[Finding]]:
    """The rows of a pair set or of a photo folder, every picture of one without rows, and the findings "bad_row"."""
    path = folder / METADATA if folder.is_dir() else metadata_of(folder, "give a folder of pairs or photos")
    if path.is_file() and any(read_json_lines(path, lambda row: "input_file_name" in row or "file_name" not in row).rows):
        row_set = scan_pairs(folder)
        entries = [
            Entry(line, pair.input, pair.anchor, (pair.a, pair.b), pair.split, pair.identity, pair)
            for pair, line in zip(row_set.rows, row_set.lines, strict=True)
        ]
    else:
        row_set = read_json_lines(path, partial(read_photo_row, root=folder.resolve())) if path.is_file() else list_photos(folder)
        entries = [
            Entry(line, row["file_name"], row.get("anchor_file_name"), (), row.get("split") or "", row.get("identity") or "")
            for row, line in zip(row_set.rows, row_set.lines, strict=True)
        ]
    return entries, [Finding("bad_row", (bad.line,), bad.reason) for bad in row_set.rejected]


def _show(findings: list[Finding], rows: int, data: Path) -> None:
    console = Console()
    if not findings:
        console.print(f"{data}: {plural(rows, 'row')}, nothing found", highlight=False, markup=False)
        return
    title = escape(f"{data}: {plural(rows, 'good row')}, {plural(len(findings), 'finding')}")
    table = Table("finding", Column("count", justify="right"), "lines and words", title=title, title_justify="left")
    for kind, count in Counter(finding.kind for finding in findings).items():
        shown = [finding for finding in findings if finding.kind == kind][:SHOWN]
        words = [f"{', '.join(map(str, finding.lines[:6]))}: {finding.message}" for finding in shown]
        words += [f"and {count - SHOWN} more (--json FILE lists all)"] if count > SHOWN else []
        table.add_row(f"{kind}\n[dim]{KINDS[kind]}[/dim]", str(count), escape("\n".join(words)))
    console.print(table)


def look(folder: Path, entries: list[Entry], *, identity: bool, advance: Callable[[], None]) -> tuple[Pictures, list[Finding]]:
    """Open every file of a set once, call `advance` after each, and look for faces in photos, anchors and retouches where `identity` is
    asked for. Returns what is known, and the findings "bad_image" and "no_face".
    """
    pictures, findings = Pictures(), []
    faces = {file for entry in entries for file in (entry.photo, entry.anchor, *entry.retouches)}
    lines_of: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        for file in entry.files:
            lines_of[file].append(entry.line)
    photos = {entry.photo for entry in entries}
    for file, lines in lines_of.items():
        advance()
        try:
            pixels = read_image(folder / file).pixels
        except ImageError as error:
            findings.append(Finding("bad_image", tuple(lines), str(error)))
            continue
        pictures.digest[file] = hashlib.sha256(to_uint8(pixels).tobytes()).hexdigest()
        pictures.size[file] = (pixels.shape[1], pixels.shape[2])
        if file in photos:
            pictures.small[file] = small_copy(pixels)
        if identity and file in faces:
            try:
                pictures.embedding[file] = find_face(pixels, folder / file, 0).embedding
            except FaceError as error:
                findings.append(Finding("no_face", tuple(lines), str(error)))
    return pictures, findings


def check_sizes(entries: list[Entry], pictures: Pictures) -> list[Finding]:
    """Candidates and anchors must show their photo's frame at no less than half its size."""
    findings = []
    for entry in entries:
        for file in (file for file in entry.files[1:] if file in pictures.size and entry.photo in pictures.size):
            (height, width), (own_height, own_width) = pictures.size[entry.photo], pictures.size[file]
            other = abs(own_height / own_width / (height / width) - 1) > 0.01
            if other or own_height < height / 2:
                why = "has another aspect ratio than" if other else "is less than half the size of"
                text = f"{file} ({own_width}x{own_height}) {why} its photo {entry.photo} ({width}x{height})"
                findings.append(Finding("bad_image", (entry.line,), text))
    return findings


def check_duplicates(entries: list[Entry], pictures: Pictures, *, max_bits: int, min_correlation: float) -> list[Finding]:
    """Photos that are in two splits, exactly or nearly; rows that repeat each other; candidates that are one picture."""
    findings: list[Finding] = []
    splits: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for entry in entries:
        if entry.photo in pictures.digest:
            if entry.split:
                splits[pictures.digest[entry.photo]][entry.split].append(entry)
            others = sorted(entry.others, key=lambda file: pictures.digest.get(file, ""))
            files = [pictures.digest.get(file) for file in (entry.photo, *others)]
            if all(files) and not (entry.pair is None and len(files) > 1):
                rows[tuple(str(file) for file in files)].append(entry.line)
    for by_split in splits.values():
        if len(by_split) > 1:
            first = [group[0] for group in by_split.values()]
            where = ", ".join(f"{entry.photo} ({entry.split})" for entry in first)
            findings.append(Finding("duplicate_across_splits", tuple(entry.line for entry in first), f"the same photo: {where}"))
    findings += [Finding("duplicate_row", tuple(lines), f"rows {lines} hold the same pictures") for lines in rows.values() if lines[1:]]
    for entry in entries:
        pair = entry.pair
        if pair and pair.overall in ("a", "b") and pictures.digest.get(pair.a, "a") == pictures.digest.get(pair.b, "b"):
            text = f"{pair.id}: {pair.a} and {pair.b} are one picture, yet {pair.overall} wins"
            findings.append(Finding("same_candidates", (entry.line,), text))
    owners = list({(entry.photo, entry.split): entry for entry in entries if entry.split and entry.photo in pictures.small}.values())
    if not owners:
        return findings
    smalls = np.stack([pictures.small[entry.photo] for entry in owners])
    hashes, groups = np.stack([perceptual_hash(small) for small in smalls]), [entry.split for entry in owners]
    for i, j in near_duplicates(hashes, smalls, groups, max_bits=max_bits, min_correlation=min_correlation):
        one, other = owners[i], owners[j]
        if pictures.digest[one.photo] != pictures.digest[other.photo]:
            text = f"{one.photo} ({one.split}) looks like {other.photo} ({other.split})"
            findings.append(Finding("near_duplicate_across_splits", (one.line, other.line), text))
    return findings


def check_people(entries: list[Entry], pictures: Pictures, *, max_distance: float) -> list[Finding]:
    """One person in two splits: by the name that rows give, and by the identity net.

    The net is not asked about the embedded people (identity "synthetic-..."): they are morphs of two persons, and by the net's rule
    the middle ones would be both. Their splits are disjoint in morph position.
    """
    findings = []
    named: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in entries:
        if entry.identity and entry.split:
            named[entry.identity].setdefault(entry.split, entry.line)
    for name, splits in named.items():
        if len(splits) > 1:
            findings.append(Finding("person_across_splits", tuple(splits.values()), f"{name} is in {' and '.join(splits)}"))
    asked: dict[str, Entry] = {}
    for entry in entries:
        if entry.split and entry.photo in pictures.embedding and not entry.identity.startswith(EMBEDDED):
            asked.setdefault(entry.photo, entry)
    owners = list(asked.values())
    if len(owners) > 1:
        vectors = torch.stack([pictures.embedding[entry.photo] for entry in owners])
        for index, entry in enumerate(owners):
            distance = (vectors[index + 1 :] - vectors[index]).norm(dim=1)
            for offset in (distance < max_distance).nonzero().flatten().tolist():
                other = owners[index + 1 + offset]
                if other.split != entry.split and not (entry.identity and entry.identity == other.identity):
                    text = f"{entry.photo} ({entry.split}) and {other.photo} ({other.split}): identity distance {distance[offset]:.2f}"
                    findings.append(Finding("person_across_splits", (entry.line, other.line), text))
    return findings


def check_anchors(entries: list[Entry], pictures: Pictures, *, need: bool, max_distance: float) -> list[Finding]:
    """Photos without an anchor, and anchors and candidates of another person."""
    findings = []
    some = any(entry.anchor for entry in entries)
    for entry in entries:
        if entry.anchor is None and (need or some):
            text = f"{entry.photo} has no anchor_file_name{'' if need else ', other rows have one'}"
            findings.append(Finding("missing_anchor", (entry.line,), text))
        shown = [("anchor_of_another_person", entry.anchor)] if entry.anchor is not None else []
        for kind, file in (*shown, *(("candidate_of_another_person", file) for file in entry.retouches)):
            if entry.photo in pictures.embedding and file in pictures.embedding:
                distance = float((pictures.embedding[entry.photo] - pictures.embedding[file]).norm())
                if distance > max_distance:
                    text = f"{file} is not the person in {entry.photo}: identity distance {distance:.2f}, at most {max_distance:g}"
                    findings.append(Finding(kind, (entry.line,), text))
    return findings


def check_verdicts(entries: list[Entry]) -> list[Finding]:
    """Judgements against themselves; truth of degradations that does not follow from its scores; who won is not who lost elsewhere."""
    findings = []
    seen: dict[tuple[str, ...], tuple[int, str]] = {}
    for entry in entries:
        pair = entry.pair
        if pair is None:
            continue
        wrong = contradictions(pair)
        if pair.annotator == "degradation" and pair.scores and pair.verdicts:
            whole = {name: (round(a), round(b)) for name, (a, b) in pair.scores.items()}
            if (pair.verdicts, pair.overall) != verdicts_of(whole):
                wrong.append("verdicts do not follow from the degradations' scores")
        findings += [Finding("verdict_inconsistent", (entry.line,), f"{pair.id}: {text}") for text in wrong]
        if pair.overall:
            winner = {"a": pair.a, "b": pair.b, "tie": ""}[pair.overall]
            key = (pair.input, pair.annotator, *sorted((pair.a, pair.b)))
            line, before = seen.setdefault(key, (entry.line, winner))
            if before != winner:
                text = f"{pair.id}: {pair.annotator or 'the annotator'} judged the same pictures otherwise in line {line}"
                findings.append(Finding("verdict_inconsistent", (line, entry.line), text))
    return findings


def small_copy(pixels: Float[Tensor, "3 h w"]) -> Float[ndarray, "32 32"]:
    """Luminance at 32 x 32, in [0, 1]."""
    return luminance(resize(pixels, (SMALL_SIDE, SMALL_SIDE)))[0].numpy()


def perceptual_hash(small: Float[ndarray, "32 32"]) -> Bool[ndarray, " 64"]:
    """Signs of the 8 x 8 lowest DCT frequencies about their median ("pHash", Zauner 2010): unmoved by size, JPEG and brightness."""
    low = np.asarray(dctn(small, norm="ortho"))[:LOW_FREQUENCIES, :LOW_FREQUENCIES].ravel()
    return low > np.median(low[1:])


def near_duplicates(
    hashes: Bool[ndarray, "n 64"], smalls: Float[ndarray, "n 32 32"], groups: list[str], *, max_bits: int, min_correlation: float
) -> list[tuple[int, int]]:
    """Pairs of pictures of different groups that look the same: their hashes differ in at most `max_bits` bits, and their small copies,
    less their means, correlate by `min_correlation` at least. Returns indices (i, j), i < j.
    """
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)
    flat = smalls.reshape(len(smalls), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    labels = np.array(groups)
    pairs = []
    for start in range(0, len(signs), 512):
        differing = (hashes.shape[1] - signs[start : start + 512] @ signs.T) / 2
        near = (differing <= max_bits) & (labels[start : start + 512, None] != labels[None])
        for row, other in np.argwhere(near):
            one = start + int(row)
            if one < other and float(flat[one] @ flat[other]) >= min_correlation:
                pairs.append((one, int(other)))
    return pairs
