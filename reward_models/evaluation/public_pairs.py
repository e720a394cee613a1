"""Public benchmarks of image editing as judged pairs: who is preferred overall, by people, read from the files as they are published.

They ask about edits of any kind, by an instruction; our judge is asked about portraits and is not shown the instruction. What is
measured is how far its idea of a good edit carries, not what the benchmarks' own tables show.

    editreward-bench-tiger      TIGER-Lab/EditReward-Bench, parquet: source_image, candidate_1, candidate_2, ranking, comparison_type
    editreward-bench-editscore  EditScore/EditReward-Bench, arrow or parquet: input_image, output_images (the better first), dimension
    mmrb2-edit                  facebookresearch/MMRB2, built by its scripts: edit.json beside images/ and input_images/
    genai-bench                 TIGER-Lab/GenAI-Bench, image_edition, parquet: source_image, {left,right}_output_image, vote_type

Columns and the meaning of verdicts are those that the owners' own evaluation scripts read. Not seen by us are the data themselves.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portraitkit.errors import DataError
from portraitkit.files.atomic import replacing
from preference_data.pair_set import check_inside
from preference_data.verdict import Verdict
from reward_models.judge.pairs import JudgedPair

Picture = bytes | Path


@dataclass(frozen=True)
class PublicPair:
    """One row of a benchmark."""

    id: str  # unique
    photo: Picture  # encoded picture, or the file that holds it
    a: Picture  # first candidate
    b: Picture  # second candidate
    overall: Verdict | None  # who is preferred; None: the row is no pair of this kind and is left out


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is read."""

    suffixes: tuple[str, ...]  # of its table files, or the name of its JSON file
    columns: tuple[str, ...]  # that must be there
    read: Callable[[Mapping[str, Any], int, Path], PublicPair]  # (row, its number, folder) -> pair
    below: str = ""  # folder that holds its tables, where others hold other tasks; "" where there is none


def _tiger(row: Mapping[str, Any], number: int, folder: Path) -> PublicPair:
    """ranking is "A>B", "B>A" or "A=B", by the letters of comparison_type ("AvsC"); candidate_1 is the first letter's."""
    letters = (row.get("comparison_type") or "AvsB").split("vs")
    ranking = str(row["ranking"]).replace(" ", "")
    meaning: dict[str, Verdict] = {">".join(letters): "a", ">".join(letters[::-1]): "b", "=".join(letters): "tie"}
    if len(letters) != 2 or ranking not in meaning:
        raise DataError(f"ranking {ranking!r} of {row.get('comparison_type')!r}: must be one of {', '.join(meaning)}")
    photo, a, b = (_bytes(row[name], name) for name in ("source_image", "candidate_1", "candidate_2"))
    return PublicPair(f"{row.get('id', number)}-{'vs'.join(letters)}-{number}", photo, a, b, meaning[ranking])


def _editscore(row: Mapping[str, Any], number: int, folder: Path) -> PublicPair:
    """The owners count a score as right where the first picture's is the higher one. Only the dimension "overall" is taken."""
    outputs = row["output_images"]
    if not isinstance(outputs, list) or len(outputs) != 2:
        raise DataError("output_images: must be two pictures")
    photo = _bytes(row["input_image"], "input_image")
    a, b = (_bytes(value, "output_images") for value in outputs)
    return PublicPair(f"{number}", photo, a, b, "a" if row["dimension"] == "overall" else None)


def _mmrb2(row: Mapping[str, Any], number: int, folder: Path) -> PublicPair:
    """chosen (human_preference in its README) is "A" or "B"; pairs about other than one input picture are left out."""
    chosen = row.get("chosen", row.get("human_preference"))
    if chosen not in ("A", "B"):
        raise DataError(f"chosen {chosen!r}: must be A or B")
    contents = (row["prompt_content"], row["response_a"]["response_content"], row["response_b"]["response_content"])
    pictures = [[item[1] for item in content if item[0] == "image"] for content in contents]
    name = str(row.get("id", row.get("pair_id", number)))
    if any(len(some) != 1 for some in pictures):
        return PublicPair(name, b"", b"", b"", None)
    photo, a, b = (check_inside(folder.resolve(), some[0], "image") for some in pictures)
    return PublicPair(name, photo, a, b, "a" if chosen == "A" else "b")


def _genai(row: Mapping[str, Any], number: int, folder: Path) -> PublicPair:
    """vote_type is leftvote, rightvote, tievote or bothbad_vote; the last two are ties."""
    votes: dict[str, Verdict] = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbad_vote": "tie"}
    if row["vote_type"] not in votes:
        raise DataError(f"vote_type {row['vote_type']!r}: must be one of {', '.join(votes)}")
    photo, a, b = (_bytes(row[name], name) for name in ("source_image", "left_output_image", "right_output_image"))
    return PublicPair(f"{number}", photo, a, b, votes[row["vote_type"]])


TABLES = (".parquet", ".arrow")
BENCHMARKS = {
    "editreward-bench-tiger": Benchmark(TABLES, ("source_image", "candidate_1", "candidate_2", "ranking"), _tiger),
    "editreward-bench-editscore": Benchmark(TABLES, ("input_image", "output_images", "dimension"), _editscore),
    "mmrb2-edit": Benchmark(("edit.json",), ("prompt_content", "response_a", "response_b"), _mmrb2),
    "genai-bench": Benchmark(
        TABLES, ("source_image", "left_output_image", "right_output_image", "vote_type"), _genai, below="image_edition"
    ),
}


def benchmark_files(name: str, folder: Path) -> list[Path]:
    """The files that a benchmark is read from; DataError where there are none, or a column is missing."""
    benchmark = BENCHMARKS[name]
    if not folder.is_dir():
        raise DataError(f"--data {folder}: no such folder; download {name} and give the folder")
    root = folder / benchmark.below if benchmark.below and (folder / benchmark.below).is_dir() else folder
    if benchmark.suffixes == ("edit.json",):
        files = [root / "edit.json"] if (root / "edit.json").is_file() else []
    else:
        files = sorted(path for path in root.rglob("*") if path.suffix in benchmark.suffixes)
    if not files:
        raise DataError(f"--data {folder}: holds no {' or '.join(benchmark.suffixes)} of {name}; give the folder it was downloaded to")
    for path in files:
        first = next(_rows(path), {})
        if missing := [column for column in benchmark.columns if column not in first]:
            raise DataError(f"{path}: has no column {missing[0]!r}; {name} has {', '.join(benchmark.columns)}")
    return files


def read_benchmark(name: str, folder: Path, pictures: Path, *, limit: int = 0) -> tuple[list[JudgedPair], int]:
    """The first `limit` pairs of a benchmark (0: all), a key of `BENCHMARKS`, in its folder as downloaded, and how many rows are no pair of
    the kind. Pictures that stand inside tables are written to `pictures`.
    DataError: see `benchmark_files`; or a row breaks the layout, its file and number are named."""
    pairs, left_out = [], 0
    pictures.mkdir(parents=True, exist_ok=True)
    for path in benchmark_files(name, folder):
        for number, row in enumerate(_rows(path), start=1):
            try:
                found = BENCHMARKS[name].read(row, number, path.parent)
            except (DataError, KeyError, TypeError, IndexError) as error:
                reason = error if isinstance(error, DataError) else f"{type(error).__name__} {error}"
                raise DataError(f"{path} row {number}: {reason}") from error
            if found.overall is None:
                left_out += 1
                continue
            files = [_stored(picture, pictures) for picture in (found.photo, found.a, found.b)]
            pairs.append(JudgedPair(f"{path.stem}-{found.id}", files[0].stem, *files, found.overall, {}))
            if len(pairs) == limit:
                return pairs, left_out
    if not pairs:
        raise DataError(f"--data {folder}: no row of {name} is a pair with one input picture and a verdict")
    return pairs, left_out


def _stored(picture: Picture, folder: Path) -> Path:
    """The picture as a file named by its content, so that pairs of one photo are known to be of one photo."""
    if isinstance(picture, Path):
        return picture
    suffix = ".jpg" if picture[:2] == b"\xff\xd8" else ".webp" if picture[8:12] == b"WEBP" else ".png"
    path = folder / f"{hashlib.sha256(picture).hexdigest()[:20]}{suffix}"
    if not path.is_file():
        with replacing(path) as temporary:  # other processes look for it, too
            temporary.write_bytes(picture)
    return path


def _bytes(value: Any, column: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else None
    if not data:
        raise DataError(f"{column}: holds no encoded picture")
    return data


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Of a JSON file of MMRB2, of a parquet file, or of a stream as the datasets library writes its arrow files."""
    import pyarrow
    from pyarrow import ipc, parquet

    if path.suffix == ".json":
        try:
            yield from (dict(pair) for pair in json.loads(path.read_text(encoding="utf-8"))["pairs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is no MMRB2 file ({error}); it holds an object with pairs, a list of objects") from error
        return
    try:
        table = parquet.ParquetFile(path).iter_batches(16) if path.suffix == ".parquet" else ipc.open_stream(pyarrow.memory_map(str(path)))
        for batch in table:
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no {path.suffix[1:]} table, or damaged; download it again") from error
